/*
 * The protocol of leases, for spin: every order of what follows is gone through.
 *
 * One job; workers that lease it, do it, and end it; requests and answers that are lost; workers that die, or
 * are slower than their lease; an operator who has the finished job run again.  What is atomic here is
 * one statement of pqcore's there, which locks the row and looks at it again (pqcore/fragments.py, HELD).
 *
 * FENCED says whether an end must name the attempt that it belongs to.  With 0 the model must be found wrong:
 * a worker that was overtaken ends another's lease.
 */
#ifndef FENCED
#define FENCED 1
#endif

#define WORKERS 3
#define FAULTS 7                       /* answers, requests and workers lost; leases run out; jobs given back */
#define RERUNS 2                       /* by the operator */
#define MOST (2 + FAULTS + 2 * RERUNS) /* attempts that these can lead to, and one to spare */

bool leased, over, finished;           /* the row: leased_until is set; it is past; dequeued_at is set */
byte attempts;                         /* the row's, which a lease takes as its token */
byte faults = FAULTS;
byte reruns;
byte effects;                          /* written in the transaction of the acknowledgement */
byte thanks;                           /* acknowledgements of which a worker heard that they were accepted */

#define HELD(token) (leased && !finished && (!FENCED || attempts == token))

proctype Worker() {
    byte token;

free:
    do
    :: atomic {
        !finished && (!leased || over) ->
            attempts++;
            assert(attempts < MOST);
            token = attempts;
            leased = true;
            over = false
        }
        if
        :: goto working
        :: atomic { faults > 0 -> faults--; goto free }         /* the answer is lost, or the worker dies */
        fi
    :: finished && reruns == RERUNS -> break
    od;
    goto end;

working:
    if
    :: atomic { faults > 0 -> faults--; goto free }             /* dies, and another takes its place */
    :: atomic { faults > 0 -> faults--;                         /* extends it */
            if
            :: HELD(token) -> over = false; goto working
            :: else -> goto free                                /* LeaseLost */
            fi
        }
    :: atomic { faults > 0 -> faults--;                         /* gives it back */
            if
            :: HELD(token) -> leased = false; goto free
            :: else -> goto free
            fi
        }
    :: goto ending
    fi;

ending:
    if
    :: atomic { faults > 0 -> faults--; goto ending }           /* the request is lost: OutcomeUnknown, send it again */
    :: atomic {
        if
        :: HELD(token) -> assert(attempts == token);            /* nobody ends what was given to another */
            leased = false;
            finished = true;
            effects++
        :: else -> goto free                                    /* LeaseLost: what it wrote is undone */
        fi
        }
        if
        :: atomic { faults > 0 -> faults--; goto ending }       /* the answer is lost: sent again, it is refused */
        :: atomic { thanks++; goto free }
        fi
    fi;

end:
    skip
}

proctype Clock() {
end:
    do
    :: atomic { leased && !over && faults > 0 -> faults--; over = true }
    od
}

proctype Operator() {
end:
    do
    :: atomic { finished && reruns < RERUNS -> finished = false; reruns++ }  /* attempts go on: no token comes twice */
    od
}

/* A lease that nobody holds any more runs out by itself, however many faults there were. */
proctype Time() {
end:
    do
    :: atomic { timeout && leased && !over -> over = true }
    od
}

init {
    byte worker;
    atomic {
        run Clock();
        run Operator();
        run Time();
        for (worker : 1 .. WORKERS) {
            run Worker()
        }
    }
    (finished && reruns == RERUNS && _nr_pr == 4);              /* always comes: spin tells of a state without a way on */
    assert(effects == 1 + reruns);                              /* each run's effect once */
    assert(thanks <= effects)                                   /* and nobody thanked for what was not done */
}
