"""Results of coroutines, kept in the store: meets it through its verbs alone."""
