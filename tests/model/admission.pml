/*
 * The admission of jobs under limits and in groups, for spin: every order of what follows is gone through.
 *
 * Takers take jobs by one statement: it reads a snapshot, locks the rows of keys, then the rows of jobs, and commits.
 * Other transactions commit between any two of these steps: jobs end, leases run out, jobs are made to wait again, a get
 * takes a job, a taker fails and is rolled back. An end writes no key's row.
 *
 * Each of these may be set to 0, and the model must then be found wrong:
 *   VERSIONED  a taker uses a key's row only in the version that its snapshot has
 *   HEADS      only the first unfinished job of a group is taken
 *   RESERVED   a job under several keys that waits has others wait for it
 */
#ifndef VERSIONED
#define VERSIONED 1
#endif
#ifndef HEADS
#define HEADS 1
#endif
#ifndef RESERVED
#define RESERVED 1
#endif
#ifndef FAULTS
#define FAULTS 2                        /* leases that run out; takes that are rolled back; jobs that a get takes */
#endif

#ifndef WIDE
#define WIDE 2                          /* places of the second limit; the first has one */
#endif
#ifndef TAKERS
#define TAKERS 2
#endif
#define JOBS 5
#define KEYS 2
#define NONE 7

#define BIT(n) (1 << (n))
#define IN(set, n) ((set) & BIT(n))
#define COUNT(set) (((set) & 1) + ((set) >> 1 & 1) + ((set) >> 2 & 1) + ((set) >> 3 & 1) + ((set) >> 4 & 1))

/* Jobs by id. 0 and 1 are a group, 1 and 2 have two limits. Jobs like 3 and 4 are put again and again. */
#define UNDER(key) (key == 0 -> 2 + 4 + 8 : 1 + 2 + 4 + 16)
#define PLACES(key) (key == 0 -> 1 : WIDE)
#define GROUP (1 + 2)
#define ENDLESS (8 + 16)
#define UNDER_MANY(job) (IN(UNDER(0), job) && IN(UNDER(1), job))

/* The rows of jobs: sets of ids. A job is waiting, running or done; `over` are those whose lease has run out. */
byte waiting = 31, running, over;
byte row_locked;

/* The rows of keys. A version is told by who has seen it: `stale[t]` are the keys that were written since t's snapshot. */
byte admitted_last[KEYS];               /* ids; those of them that run take a place */
byte reserved[KEYS] = NONE;
byte key_locked;
byte stale[TAKERS];

byte faults = FAULTS;

#define FIRST_OF_GROUP(job, unfinished) (!IN(GROUP, job) || !HEADS || !((unfinished) & GROUP & (BIT(job) - 1)))

proctype Taker(byte me) {
    byte waits, runs;                   /* the snapshot */
    byte held, written;                 /* keys */
    byte chosen;                        /* jobs */
    byte room[KEYS], first[KEYS];
    byte key, job, other;
    bit fits;

take:
    atomic {                            /* the snapshot */
        waiting ->
        waits = waiting;
        runs = running;
        stale[me] = 0
    }
    key = 0;
    do                                  /* FOR UPDATE SKIP LOCKED, one row after the other */
    :: atomic { key < KEYS ->
            if
            :: !IN(key_locked, key) && (!VERSIONED || !IN(stale[me], key)) ->
                key_locked = key_locked | BIT(key);
                held = held | BIT(key)
            :: else
            fi;
            key++
        }
    :: else -> break
    od;
    key = 0;
    d_step {                            /* what may run: by the rows of keys that are held, and the snapshot's jobs */
        key = 0;
        do
        :: key == KEYS -> break
        :: else ->
            room[key] = 0;
            first[key] = NONE;
            if
            :: IN(held, key) ->
                if
                :: COUNT(admitted_last[key] & runs) < PLACES(key) -> room[key] = PLACES(key) - COUNT(admitted_last[key] & runs)
                :: else
                fi;
                if
                :: reserved[key] != NONE && IN(waits, reserved[key]) -> first[key] = reserved[key]
                :: else
                fi
            :: else
            fi;
            key++
        od;
        job = 0;
        do
        :: job == JOBS -> break
        :: else ->
            if
            :: IN(waits, job) && FIRST_OF_GROUP(job, waits | runs) ->
                fits = true;
                key = 0;
                do
                :: key == KEYS -> break
                :: else ->
                    if
                    :: IN(UNDER(key), job) && (room[key] == 0 || (first[key] != NONE && first[key] != job)) -> fits = false
                    :: else
                    fi;
                    key++
                od;
                key = 0;
                do
                :: key == KEYS -> break
                :: else ->
                    if
                    :: IN(UNDER(key), job) && fits -> room[key]--; written = written | BIT(key); first[key] = NONE
                    :: IN(UNDER(key), job) && !fits && RESERVED && UNDER_MANY(job) && IN(held, key) && job < first[key] ->
                        first[key] = job;
                        written = written | BIT(key)
                    :: else
                    fi;
                    key++
                od;
                if
                :: fits -> chosen = chosen | BIT(job)
                :: else
                fi
            :: else
            fi;
            job++
        od;
        key = 0; job = 0; fits = 0
    }
    d_step {                            /* FOR UPDATE SKIP LOCKED, and EvalPlanQual: a row that changed is looked at again */
        chosen = chosen & waiting & ~row_locked;
        row_locked = row_locked | chosen
    }
    if
    :: atomic { faults > 0 -> faults-- }                        /* the transaction is rolled back */
    :: d_step {                                                 /* or it commits */
        waiting = waiting & ~chosen;
        running = running | chosen;
        key = 0;
        do
        :: key == KEYS -> break
        :: else ->
            if
            :: IN(written, key) ->
                admitted_last[key] = (admitted_last[key] & runs) | (chosen & UNDER(key));
                reserved[key] = first[key];
                for (other : 0 .. TAKERS - 1) {
                    stale[other] = stale[other] | BIT(key)
                }
            :: else
            fi;
            assert(COUNT(running & UNDER(key)) <= PLACES(key));
            key++
        od;
        assert(COUNT(running & GROUP) <= 1);
        assert(!(IN(running, 1) && IN(waiting, 0)));            /* the order of the group */
        }
    fi;
    d_step {
        row_locked = row_locked & ~chosen;
        key_locked = key_locked & ~held;
        waits = 0; runs = 0; held = 0; written = 0; chosen = 0; key = 0; other = 0;
        room[0] = 0; room[1] = 0; first[0] = 0; first[1] = 0
    }
    goto take
}

proctype Job(byte me) {
end:
    do
    :: atomic { IN(running, me) -> running = running & ~BIT(me); over = over & ~BIT(me);  /* its end, which locks no key */
            if
            :: IN(ENDLESS, me) -> waiting = waiting | BIT(me)   /* and another like it is put */
            :: else -> break
            fi
        }
    :: atomic { IN(running, me) && !IN(over, me) && faults > 0 -> faults--; over = over | BIT(me) }
    :: atomic { IN(over, me) -> over = over & ~BIT(me); running = running & ~BIT(me); waiting = waiting | BIT(me) }
    :: atomic { IN(waiting, me) && !IN(row_locked, me) && faults > 0 -> faults--;         /* a get heeds no limits */
            waiting = waiting & ~BIT(me);
            if
            :: IN(ENDLESS, me) -> waiting = waiting | BIT(me)
            :: else -> break
            fi
        }
    od
}

init {
    byte number;
    atomic {
        for (number : 0 .. TAKERS - 1) { run Taker(number) }
        for (number : 0 .. JOBS - 1) { run Job(number) }
    }
}

#ifdef PROGRESS
ltl progress { []<> !(waiting & 1) && []<> !(waiting & 2) && []<> !(waiting & 4) }
#endif
