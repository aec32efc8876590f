// Those of the probes in ../faults.py that make sense in Node, for opossum and cockatiel. Prints JSON.
import { createRequire } from 'node:module';

const require = createRequire(`${process.argv[2]}/package.json`);
const CircuitBreaker = require('opossum');
const cockatiel = require('cockatiel');
const VALUE = '4 of 5', DEFAULT = 'no stars yet', OPEN_FOR = 200;
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
class NoSuchFilm extends Error {}
process.on('uncaughtException', () => {});
process.on('unhandledRejection', () => {});

function opossum(fn, terms) {
  const circuit = new CircuitBreaker(fn, {
    timeout: terms.timeout ?? 1000, capacity: terms.limit ?? 10000, resetTimeout: OPEN_FOR,
    volumeThreshold: terms.opensAfter ?? 5, errorThresholdPercentage: 50,
    errorFilter: terms.refused ? (error) => error instanceof NoSuchFilm : undefined,
    coalesce: terms.singleFlight ?? false, cache: false,
  });
  if (terms.planB) circuit.fallback(terms.planB);
  if (terms.listener) circuit.on('open', terms.listener);
  return (key) => circuit.fire(key);
}

function cockatielPolicy(fn, terms) {
  if (terms.singleFlight) throw new Error('- no single flight');
  const counted = terms.refused ? cockatiel.handleWhen((e) => !(e instanceof NoSuchFilm)) : cockatiel.handleAll;
  const policies = [];
  if (terms.planB) policies.push(cockatiel.fallback(counted, terms.planB));
  if (terms.total) policies.push(cockatiel.timeout(terms.total, cockatiel.TimeoutStrategy.Aggressive));
  if (terms.attempts) {
    policies.push(cockatiel.retry(counted,
      { maxAttempts: terms.attempts - 1, backoff: new cockatiel.ConstantBackoff(terms.pause) }));
  }
  const breaker = cockatiel.circuitBreaker(counted,
    { halfOpenAfter: OPEN_FOR, breaker: new cockatiel.ConsecutiveBreaker(terms.opensAfter ?? 5) });
  if (terms.listener) breaker.onBreak(terms.listener);
  policies.push(breaker, cockatiel.bulkhead(terms.limit ?? 10000, 10000));
  policies.push(cockatiel.timeout(terms.timeout ?? 1000, cockatiel.TimeoutStrategy.Aggressive));
  const policy = cockatiel.wrap(...policies);
  return (key) => policy.execute(() => fn(key));
}

const outcome = async (promise) => { try { return await promise; } catch (error) { return error; } };
const fails = async () => { throw new TypeError('out of order'); };

const probes = {
  'a thread that was given up': async (guard) => {
    let running = 0, most = 0;
    const call = guard(async () => {
      most = Math.max(most, ++running);
      await sleep(300);
      running--;
    }, { limit: 2, timeout: 50, opensAfter: 1e9 });
    for (let i = 0; i < 6; i++) { outcome(call('a')); outcome(call('b')); await sleep(60); }
    await sleep(300);
    return most <= 2 ? 'ok' : `${most} at once, limit 2`;
  },
  '1,000 callers, half open': async (guard) => {
    let ill = true, asked = 0;
    const call = guard(async () => { asked++; if (ill) throw new Error('ill'); await sleep(50); return VALUE; }, {});
    for (let i = 0; i < 20; i++) await outcome(call('a'));
    await sleep(OPEN_FOR * 1.3);
    ill = false; asked = 0;
    const all = [];
    for (let i = 0; i < 1000; i++) all.push(outcome(call('a')));
    await sleep(20);
    const admitted = asked;
    await Promise.all(all);
    return admitted <= 10 ? 'ok' : `${admitted} of 1,000 sent`;
  },
  'a listener that raises': async (guard) => {
    let asked = 0, lost = false;
    const call = guard(async () => { asked++; throw new TypeError('ill'); },
      { listener: () => { throw new RangeError('own trouble'); } });
    for (let i = 0; i < 20; i++) lost = (await outcome(call('a'))) instanceof RangeError || lost;
    const before = asked;
    for (let i = 0; i < 3; i++) await outcome(call('a'));
    const faults = [];
    if (lost) faults.push('replaces the error');
    if (asked !== before) faults.push('the circuit never opens');
    return faults.join(', ') || 'ok';
  },
  'healthy refusals': async (guard) => {
    let mode = 'refuses', asked = 0;
    const make = () => guard(async () => {
      asked++;
      if (mode === 'refuses') throw new NoSuchFilm('no such film');
      if (mode === 'fails') throw new TypeError('ill');
      return VALUE;
    }, { refused: true });
    let call = make();
    for (let i = 0; i < 20; i++) await outcome(call('a'));
    mode = 'well';
    const faults = [];
    if (await outcome(call('a')) !== VALUE) faults.push('open it');
    call = make();
    for (let i = 0; i < 20; i++) {
      mode = 'fails'; await outcome(call('a'));
      mode = 'refuses'; await outcome(call('a'));
    }
    asked = 0; mode = 'well';
    await outcome(call('a'));
    if (asked) faults.push('count as success: never opens');
    return faults.join(', ') || 'ok';
  },
  '10,000 ask the same': async (guard) => {
    let asked = 0;
    const call = guard(async () => { asked++; await sleep(50); return VALUE; }, { singleFlight: true, limit: 20000 });
    const all = [];
    for (let i = 0; i < 10000; i++) all.push(outcome(call('film')));
    await Promise.all(all);
    return asked <= 1 ? 'ok' : `asks ${asked.toLocaleString('en')} times`;
  },
  'a pause beyond the deadline': async (guard, name) => {
    if (name === 'opossum') return '- no retries';
    const call = guard(fails, { attempts: 3, pause: 1000, total: 200, opensAfter: 1e9 });
    const began = Date.now();
    await outcome(call('a'));
    const took = (Date.now() - began) / 1000;
    return took < 0.1 ? 'ok' : `sleeps ${took.toFixed(1)} s of 0.2 s`;
  },
  'async plan B': async (guard) => {
    const got = await outcome(guard(fails, { planB: async () => DEFAULT })('a'));
    return got === DEFAULT ? 'ok' : `${got}`;
  },
  '200 rejections': async (guard) => {
    const call = guard(fails, {});
    for (let i = 0; i < 20; i++) await outcome(call('a'));
    const seen = new Set();
    for (let i = 0; i < 200; i++) seen.add(await outcome(call('a')));
    return seen.size === 200 ? 'ok' : 'one error for all';
  },
  'beside a hanging call': async (guard) => {
    const call = guard(async (key) => (key === 'hangs' ? new Promise(() => {}) : VALUE), { timeout: 5000 });
    outcome(call('hangs'));
    return await Promise.race([outcome(call('a')), sleep(500)]) === VALUE ? 'ok' : 'waits for it';
  },
  'one limit, 50 calls': async (guard) => {
    const call = guard(() => new Promise(() => {}), { timeout: 50, opensAfter: 1e9 });
    let ended = 0;
    for (let i = 0; i < 50; i++) outcome(call('a')).then(() => ended++);
    await sleep(400);
    return ended === 50 ? 'ok' : `${50 - ended} of 50 never end`;
  },
};

const found = { runtime: `Node ${process.versions.node}`, contenders: {} };
for (const [name, guard] of Object.entries({ opossum, cockatiel: cockatielPolicy })) {
  const answers = found.contenders[`${name} (Node)`] = {};
  for (const [title, probe] of Object.entries(probes)) {
    answers[title] = await outcome(Promise.race([probe(guard, name), sleep(5000).then(() => 'hangs')]));
    if (answers[title] instanceof Error) answers[title] = answers[title].message;
  }
}
process.stdout.write(JSON.stringify(found), () => process.exit(0));
