// The same workloads for opossum and cockatiel, in their own runtime. Prints JSON: seconds per call, round by round.
import { createRequire } from 'node:module';

const require = createRequire(`${process.argv[2]}/package.json`);
const CircuitBreaker = require('opossum');
const cockatiel = require('cockatiel');
const rounds = Number(process.argv[3]);
const VALUE = '4 of 5', DEFAULT = 'no stars yet', IN_FLIGHT = 3000;
const NEVER = 1e9;

const answers = async () => VALUE;
const suspends = async () => { await null; return VALUE; };
const fails = async () => { throw new Error('out of order'); };

// opossum: a circuit with a limit on time and on how many at once; it has no retries.
function opossum(fn, { limit = 64, timeout = 1000, volume = 10, memory = false, plan = null, retries = 0 } = {}) {
  if (retries) throw new Error('has no retries');
  const circuit = new CircuitBreaker(fn, {
    timeout, capacity: limit, volumeThreshold: volume, errorThresholdPercentage: 50, resetTimeout: 60000,
  });
  const kept = new Map();
  if (memory) {
    circuit.fallback((key) => kept.get(key));
    circuit.on('success', (value) => kept.set('Alien', value));
  }
  if (plan) circuit.fallback(() => plan);
  return (key) => circuit.fire(key);
}

// cockatiel: policies, wrapped; a Map round them for last good.
function cockatielPolicy(fn, { limit = 64, timeout = 1000, volume = 10, memory = false, plan = null, retries = 2 } = {}) {
  const all = cockatiel.handleAll;
  const policies = [];
  if (plan) policies.push(cockatiel.fallback(all, plan));
  const closed = cockatiel.handleWhen((e) => !(e instanceof cockatiel.BrokenCircuitError));
  policies.push(cockatiel.retry(closed, { maxAttempts: retries, backoff: new cockatiel.ConstantBackoff(0) }));
  const breaker = new cockatiel.ConsecutiveBreaker(volume);
  policies.push(cockatiel.circuitBreaker(all, { halfOpenAfter: 60000, breaker }));
  policies.push(cockatiel.bulkhead(limit, 10000));
  policies.push(cockatiel.timeout(timeout, cockatiel.TimeoutStrategy.Aggressive));
  const policy = cockatiel.wrap(...policies);
  const call = (key) => policy.execute(() => fn(key));
  if (!memory) return call;
  const kept = new Map();
  return async (key) => {
    try {
      const value = await call(key);
      kept.set(key, value);
      return value;
    } catch (error) {
      if (kept.has(key)) return kept.get(key);
      throw error;
    }
  };
}

const contenders = { 'bare': (fn) => (key) => fn(key), 'opossum': opossum, 'cockatiel': cockatielPolicy };

const oneAfterTheOther = (call) => async (calls) => { for (let i = 0; i < calls; i++) await call('Alien'); };

const workloads = {
  'no-op': async (guard) => oneAfterTheOther(guard(answers, { memory: true })),
  'one suspension': async (guard) => oneAfterTheOther(guard(suspends, { memory: true })),
  '3,000 in flight': async (guard) => {
    let open, door;
    const waits = async () => { await door; return VALUE; };
    const call = guard(waits, { limit: IN_FLIGHT, timeout: 30000, memory: true });
    const batch = async () => {
      door = new Promise((resolve) => { open = resolve; });
      const all = [];
      for (let i = 0; i < IN_FLIGHT; i++) all.push(call('Alien'));
      open();
      await Promise.all(all);
    };
    batch.calls = IN_FLIGHT;
    return batch;
  },
  'failing': async (guard, name) => {
    if (name === 'bare') throw new Error('has no plan B');
    const call = guard(fails, { volume: NEVER, plan: DEFAULT, retries: 2 });
    if (await call('Alien') !== DEFAULT) throw new Error('does not fall back');
    return oneAfterTheOther(call);
  },
  'open circuit': async (guard, name) => {
    if (name === 'bare') throw new Error('has no plan B');
    let well = true, asked = 0;
    const call = guard(async () => { asked++; if (well) return VALUE; throw new Error('ill'); },
      { volume: 5, memory: true, retries: 0 });
    await call('Alien');
    well = false;
    for (let i = 0; i < 200; i++) await call('Alien');
    asked = 0;
    for (let i = 0; i < 20; i++) if (await call('Alien') !== VALUE) throw new Error('forgets');
    if (asked) throw new Error('its circuit does not open');
    return oneAfterTheOther(call);
  },
};

async function timed(batch, calls) {
  const started = process.hrtime.bigint();
  await batch(calls);
  return Number(process.hrtime.bigint() - started) / 1e9 / calls;
}

const found = { runtime: `Node ${process.versions.node}`, workloads: {} };
for (const [name, prepare] of Object.entries(workloads)) {
  const results = found.workloads[name] = {};
  const ready = [];
  for (const [who, guard] of Object.entries(contenders)) {
    try {
      const batch = await prepare(guard, who);
      let calls = batch.calls || 64;
      await timed(batch, calls);
      if (!batch.calls) while (await timed(batch, calls) * calls < 0.002) calls *= 2;
      ready.push([who, batch, calls]);
      results[who] = [];
    } catch (error) {
      results[who] = error.message;
    }
  }
  for (let round = 0; round < rounds; round++) {
    ready.sort(() => Math.random() - 0.5);
    for (const [who, batch, calls] of ready) results[who].push(await timed(batch, calls));
  }
}
process.stdout.write(JSON.stringify(found), () => process.exit(0));
