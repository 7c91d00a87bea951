/*
 * Jobs that a worker leases ahead for its places under a limit, for spin: every order of what follows is gone through.
 *
 * One statement of a worker ends jobs and leases others: more than there are places. The worker starts no more of them
 * than the answer to its last statement says. Other takers lease one job for each place, and start it immediately.
 *
 * Each of these may be set to 0, and the model must then be found wrong:
 *   VERSIONED  a statement uses the key's row only in the version that its snapshot has
 *   NUMBERED   a worker starts no more jobs than the answer says, rather than as many as the limit has places
 *   COUNTED    a statement counts the jobs that others leased ahead, rather than only those that others have started
 */
#ifndef VERSIONED
#define VERSIONED 1
#endif
#ifndef NUMBERED
#define NUMBERED 1
#endif
#ifndef COUNTED
#define COUNTED 1
#endif
#ifndef PLACES
#define PLACES 2
#endif
#ifndef FAULTS
#define FAULTS 1                        /* statements that are rolled back; jobs that are given back unstarted */
#endif
#define WORKERS 2                       /* the second leases nothing ahead */
#define TIMES(worker) (worker == 0 -> 2 : 1)
#define JOBS 4

#define BIT(n) (1 << (n))
#define IN(set, n) ((set) & BIT(n))
#define COUNT(set) (((set) & 1) + ((set) >> 1 & 1) + ((set) >> 2 & 1) + ((set) >> 3 & 1))

/* The rows of jobs, as sets of ids; a job that ended is put again. */
byte waiting = 15, leased;
byte row_locked;

/* The row of the key. */
byte admitted_last;
bit key_locked;
bit stale[WORKERS];

/* What each worker knows: the jobs that it has leased, and those of them that run or have ended. */
byte own[WORKERS], started[WORKERS], ended[WORKERS], places[WORKERS];

byte faults = FAULTS;

#define ALL_STARTED (started[0] | started[1])

proctype Statement(byte me) {
    byte ends, ahead;                   /* the parameters */
    byte waits, alive;                  /* the snapshot */
    byte chosen, job;
    short mine, usable, room;
    bit held;

again:
    atomic { ended[me] || waiting -> ends = ended[me]; ahead = own[me] & ~ends }
    d_step { waits = waiting; alive = admitted_last & leased & ~ends; stale[me] = 0 }
    atomic {                            /* FOR UPDATE SKIP LOCKED */
        if
        :: !key_locked && (!VERSIONED || !stale[me]) -> key_locked = 1; held = 1
        :: else
        fi
    }
    d_step {
        if
        :: !COUNTED -> alive = alive & (ALL_STARTED | ahead)
        :: else
        fi;
        mine = (TIMES(me) > 1 -> COUNT(alive & ahead) : 0);
        usable = PLACES - COUNT(alive) + mine;
        room = (held -> usable * TIMES(me) - mine : 0);
        job = 0;
        do
        :: job == JOBS || room <= 0 -> break
        :: else ->
            if
            :: IN(waits & waiting & ~row_locked, job) -> chosen = chosen | BIT(job); room--
            :: else
            fi;
            job++
        od;
        row_locked = row_locked | chosen;
        job = 0; room = 0
    }
    if
    :: atomic { faults > 0 -> faults--; row_locked = row_locked & ~chosen; chosen = 0 }      /* it is rolled back */
    :: d_step {                                                                              /* or it commits */
        leased = (leased & ~ends) | chosen;
        waiting = (waiting & ~chosen) | ends;
        row_locked = row_locked & ~chosen;
        if
        :: chosen -> admitted_last = alive | chosen; stale[0] = 1; stale[1] = 1
        :: else
        fi
        }
        atomic {                        /* the answer arrives; jobs may have started and ended meanwhile */
            own[me] = (own[me] & ~ends) | chosen;
            ended[me] = ended[me] & ~ends;
            places[me] = (!NUMBERED -> PLACES : (TIMES(me) > 1 -> (usable > 0 -> usable : 0) : JOBS))
        }
    fi;
    d_step {
        if
        :: held -> key_locked = 0
        :: else
        fi;
        ends = 0; ahead = 0; waits = 0; alive = 0; chosen = 0; mine = 0; usable = 0; held = 0
    }
    if
    :: atomic { faults > 0 && (own[me] & ~started[me] & ~ended[me]) -> faults--;             /* gives them back unstarted */
        waits = own[me] & ~started[me] & ~ended[me];
        own[me] = own[me] & ~waits; leased = leased & ~waits; waiting = waiting | waits; waits = 0 }
    :: true
    fi;
    goto again
}

#define UNSTARTED(me) (own[me] & ~started[me] & ~ended[me])
#define MAY_START(me, job) (IN(UNSTARTED(me), job) && COUNT(started[me]) < places[me])
#define START(me, job) started[me] = started[me] | BIT(job); assert(COUNT(ALL_STARTED) <= PLACES)
#define END(me, job) started[me] = started[me] & ~BIT(job); ended[me] = ended[me] | BIT(job)

proctype Runner(byte me) {
end:
    do
    :: d_step { MAY_START(me, 0) -> START(me, 0) }
    :: d_step { MAY_START(me, 1) -> START(me, 1) }
    :: d_step { MAY_START(me, 2) -> START(me, 2) }
    :: d_step { MAY_START(me, 3) -> START(me, 3) }
    :: d_step { IN(started[me], 0) -> END(me, 0) }
    :: d_step { IN(started[me], 1) -> END(me, 1) }
    :: d_step { IN(started[me], 2) -> END(me, 2) }
    :: d_step { IN(started[me], 3) -> END(me, 3) }
    od
}

init {
    byte number;
    atomic {
        for (number : 0 .. WORKERS - 1) { run Statement(number); run Runner(number) }
    }
}
