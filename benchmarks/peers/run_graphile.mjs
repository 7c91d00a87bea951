// Graphile Worker, with named queues, of each of which one job runs at a time: its only limit by key. It is measured at
// what it has of limits only.

import { PLACES_OF_WORKER, main, required, sleep, versionOf } from "./runner.mjs";

const pg = required("pg");
// Milliseconds between two looks of a worker, which no end of a job in a named queue wakes; 2,000 by default.
const POLL = 100;

class GraphileWorker {
  how = {
    limited: `addJobs() with queueName: key, so 1 of a key runs; run({ concurrency: ${PLACES_OF_WORKER}, pollInterval: ${POLL} })`,
    tenant: "as for limited",
  };

  async setup(dsn) {
    const { Logger, makeWorkerUtils, run } = required("graphile-worker");
    this.version = versionOf("graphile-worker");
    this.run = run;
    this.pool = new pg.Pool({ connectionString: dsn, max: PLACES_OF_WORKER + 5 });
    this.logger = new Logger(() => () => {});
    this.utils = await makeWorkerUtils({ pgPool: this.pool, logger: this.logger });
    await this.utils.migrate();
  }

  async close() {
    await this.utils.release();
    await this.pool.end();
  }

  async reset() {
    await this.pool.query("TRUNCATE graphile_worker._private_jobs, graphile_worker._private_job_queues CASCADE");
  }

  async settle() {
    await this.pool.query("VACUUM ANALYZE graphile_worker._private_jobs");
  }

  async count() {
    const found = await this.pool.query("SELECT count(*)::int AS n FROM graphile_worker._private_jobs");
    return found.rows[0].n;
  }

  async putKeyed(key, number, ms) {
    const job = { identifier: "keyed", payload: { key, ms }, queueName: key };
    if (number === 1) await this.utils.addJob(job.identifier, job.payload, { queueName: key });
    else await this.utils.addJobs(Array.from({ length: number }, () => job));
  }

  async serveKeyed(ran) {
    const keyed = async ({ key, ms }) => {
      ran(key);
      if (ms) await sleep(ms);
    };
    const runner = await this.run({
      pgPool: this.pool,
      logger: this.logger,
      concurrency: PLACES_OF_WORKER,
      pollInterval: POLL,
      noHandleSignals: true,
      taskList: { keyed },
    });
    return () => runner.stop();
  }
}

await main(new GraphileWorker());
