// One system that runs on Node, measured in a process of its own: the protocol of `runner.py`, and the workloads of
// jobs under keys, measured as there.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";

export const PLACES = 2;
export const PLACES_OF_WORKER = 20;
const CROWD = 2_000;
const HELD = 200;
const PATIENCE = 20_000;

/** Imports a package of the environment that this Node belongs to. */
export const required = createRequire(process.execPath);
/** The version of a package that the environment of this Node has. */
export function versionOf(name) {
  const file = join(dirname(process.execPath), "..", "..", name, "package.json");
  return JSON.parse(readFileSync(file, "utf-8")).version;
}
export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const clock = () => performance.now();

/** What something resolves to, or undefined after some milliseconds. */
function within(promise, ms) {
  let timer;
  const late = new Promise((resolve) => (timer = setTimeout(resolve, ms)));
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

class Event {
  constructor() {
    this.clear();
  }
  clear() {
    this.isSet = false;
    this.promise = new Promise((resolve) => {
      this.set = () => {
        this.isSet = true;
        resolve(true);
      };
    });
  }
}

class Measuring {
  constructor(system) {
    this.system = system;
    this.rate = 0;
  }

  async limited(seconds) {
    const { system } = this;
    const least = Math.round(300 * Math.min(1, seconds / 0.3));
    const n = Math.max(least, Math.min(10_000, Math.ceil((this.rate * 3 * seconds) / 100) * 100));
    await system.putKeyed("crowd", n, 0);
    await system.settle();
    const times = [];
    const all = new Event();
    const stop = await system.serveKeyed(() => {
      times.push(clock());
      if (times.length === n) all.set();
    });
    let left = 0;
    try {
      await within(all.promise, PATIENCE);
      for (let look = 0; look < 200 && (await system.count()); look++) await sleep(10);
      left = await system.count();
    } finally {
      await stop();
    }
    if (times.length < 2) throw new Error(`${times.length} of ${n} jobs ran within ${PATIENCE / 1000} s`);
    this.rate = (1000 * (times.length - 1)) / (times[times.length - 1] - times[0]);
    const lost = all.isSet ? Math.max(n - times.length, left) : 0;
    return { figure: this.rate, operations: times.length, lost, repeated: Math.max(times.length - n, 0) };
  }

  async tenant(samples) {
    const { system } = this;
    await system.putKeyed("crowd", CROWD, HELD);
    await system.settle();
    const events = { crowd: new Event(), other: new Event() };
    let at = 0;
    const stop = await system.serveKeyed((key) => {
      if (key === "other") at = clock();
      events[key].set();
    });
    const latencies = [];
    try {
      await within(events.crowd.promise, PATIENCE);
      const end = clock() + PATIENCE;
      for (let number = 1; number <= samples && clock() < end; number++) {
        await sleep(20 + 40 * ((number * 0.618) % 1));
        events.other.clear();
        const began = clock();
        await system.putKeyed("other", 1, 0);
        await within(events.other.promise, Math.max(end - clock(), 1000));
        if (!events.other.isSet) {
          if (latencies.length) break;
          throw new Error(`the job of the other key did not start within ${PATIENCE / 1000} s`);
        }
        latencies.push(at - began);
      }
    } finally {
      await stop();
    }
    const middle = [...latencies].sort((one, other) => one - other)[Math.floor(latencies.length / 2)];
    return { figure: middle, latencies, operations: latencies.length, lost: 0, repeated: 0 };
  }

  async answer(request) {
    const { system } = this;
    if (request.do === "setup") {
      await system.setup(request.dsn);
      return { version: system.version, node: process.version, how: system.how, alike: {} };
    }
    if (request.do !== "measure") throw new Error(`nothing is done for ${request.do}`);
    await system.reset();
    return request.workload === "limited" ? this.limited(request.seconds) : this.tenant(request.samples);
  }
}

/** Answer requests until stdin ends. */
export async function main(system) {
  console.log = console.info = console.warn = console.error;
  const measuring = new Measuring(system);
  for await (const line of createInterface({ input: process.stdin })) {
    let answer;
    try {
      answer = await measuring.answer(JSON.parse(line));
    } catch (error) {
      console.error(error);
      answer = { error: `${error.name}: ${error.message}`.split("\n")[0] };
    }
    process.stdout.write(JSON.stringify(answer) + "\n");
  }
  await system.close().catch(console.error);
  process.exit(0);
}
