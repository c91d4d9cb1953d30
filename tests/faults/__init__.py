"""What goes wrong on real servers, file by situation; each failure is proved by the server's own counter."""
