"""What a queue does, written once, by subject.

Each operation is a coroutine over an `Engine` and a queue's settings.  It does
no I/O of its own: the engine's session does.  The async face awaits it, the
blocking face steps it (`pqcore.db.runtime.run_sync`).
"""
