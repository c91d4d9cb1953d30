"""
The history checker: several processes read and write through akv on real servers that fail, and every read is judged.

    python -m tests.history --minutes 10 --seed 1 --out history.json
    python -m tests.history --verify history.json

Workers, forked off a warm parent, keep a log in shared memory that outlives
SIGKILL (:mod:`~tests.history.log`); the coordinator reads it and judges each
read by what anybody had been shown before it began (:mod:`~tests.history.check`).
"""
