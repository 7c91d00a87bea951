// pg-boss, with groups whose concurrency it keeps over all nodes. It is measured at what it has of limits only.

import { PLACES, PLACES_OF_WORKER, main, required, sleep, versionOf } from "./runner.mjs";

const pg = required("pg");
const QUEUE = "bench";

class PgBossSystem {
  how = {
    limited:
      `insert() with group: { id: key }; work({ groupConcurrency: ${PLACES}, localConcurrency: ${PLACES_OF_WORKER}, ` +
      "pollingIntervalSeconds: 0.5 }), with notify and useListenNotify",
    tenant: "as for limited",
  };

  async setup(dsn) {
    const { PgBoss } = required("pg-boss");
    this.version = versionOf("pg-boss");
    this.pool = new pg.Pool({ connectionString: dsn, max: 2 });
    this.boss = new PgBoss({ connectionString: dsn, useListenNotify: true, max: 10 });
    this.boss.on("error", console.error);
    await this.boss.start();
    await this.boss.createQueue(QUEUE, { notify: true });
  }

  async close() {
    await this.boss.stop({ graceful: false });
    await this.pool.end();
  }

  async reset() {
    await this.boss.deleteAllJobs(QUEUE);
  }

  async settle() {
    await this.pool.query("VACUUM ANALYZE pgboss.job");
  }

  async count() {
    const found = await this.pool.query("SELECT count(*)::int AS n FROM pgboss.job WHERE state < 'completed'");
    return found.rows[0].n;
  }

  async putKeyed(key, number, ms) {
    const job = { data: { key, ms }, group: { id: key } };
    if (number === 1) await this.boss.send(QUEUE, job.data, { group: job.group });
    else await this.boss.insert(QUEUE, Array.from({ length: number }, () => ({ ...job })));
  }

  async serveKeyed(ran) {
    await this.boss.work(
      QUEUE,
      {
        groupConcurrency: PLACES,
        localConcurrency: PLACES_OF_WORKER,
        pollingIntervalSeconds: 0.5,
        notifyPollingIntervalSeconds: 0.5,
      },
      async ([job]) => {
        ran(job.data.key);
        if (job.data.ms) await sleep(job.data.ms);
      },
    );
    return () => this.boss.offWork(QUEUE);
  }
}

await main(new PgBossSystem());
