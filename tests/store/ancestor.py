"""
Drives kvalchemy in a process of its own, whichever version PYTHONPATH holds.

Reads pickled requests ``(url, [(name, args, kwargs), ...])`` from stdin until it ends, and writes the pickled results
of each to stdout, KeyError for a KeyError. Beside kvalchemy's methods, ``version``, ``iterate`` (every entry as a
tuple), ``memoized`` (``total(*args)``, and how often it was computed) and ``get_proxy`` (what its ``get`` returns) are
calls.
"""

import pickle
import sys

import kvalchemy


class Ancestor(kvalchemy.KVAlchemy):
    computed = 0

    def version(self):
        return kvalchemy.__version__

    def iterate(self):
        return [(entry.key, entry.tag, entry.value, entry.expire) for entry in self]

    def memoized(self, *args):
        @self.memoize(expire=1000)
        def total(*args):
            self.computed += 1
            return sum(args)

        return total(*args), self.computed

    def get_proxy(self, *args, **kwargs):
        return super().get_proxy(*args, **kwargs).get()


def outcome(store, name, args, kwargs):
    try:
        return getattr(store, name)(*args, **kwargs)
    except KeyError:
        return KeyError


def answer(url, calls):
    store = Ancestor(url)
    try:
        return [outcome(store, *call) for call in calls]
    except Exception as error:
        return error
    finally:
        store._session.remove()
        store._engine.dispose()


def main():
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(answer(*request), sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
