"""Tests of akv: one folder per room, one contract suite for every backend, real servers throughout."""
