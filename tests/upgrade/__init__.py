"""An upgrade of a large table that is in use: to this build, and back to the build before.

``make upgrade`` makes a table of an older build of pqcore, and one of pq 1.9.1, with millions of rows. While processes
put and take jobs, it migrates the table, starts processes of this build next to the old ones, stops the old ones, and
then goes the same way back. ``python -m tests.upgrade --help`` lists the options.
"""
