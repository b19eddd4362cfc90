// What the page knows of a run: trainer events in, one plain state out. No DOM, no network, no clock.

/** Points kept of a loss curve; beyond it the curve is thinned evenly. */
export const MAX_POINTS = 2000;

const ENDED = new Set(["finished", "stopped", "failed"]);

export const isOver = (state) => ENDED.has(state.status);

/** The state before the first event. `run` is as in GET /lora_loom/runs. */
export function newState(run) {
  return {
    id: run.id,
    status: "running",
    phase: null,
    step: 0,
    total: run.total ?? 0,
    started: run.started ?? null,
    lastTime: run.started ?? null,
    stepTime: null,
    rate: 0,
    learningRate: null,
    lossIsNumber: true,
    points: [],
    stride: 1,
    lossStep: 0,
    average: { value: 0, weight: 0, step: 0 },
    validations: [],
    skipped: 0,
    warnings: [],
    error: "",
    sample: null,
    caption: null,
    adapter: "",
  };
}

/** The state that a run's history leads to: events in order, and the curve as [step, loss] pairs. */
export function fromHistory(run, events, curve) {
  let state = events.reduce(reduce, newState(run));
  // The events carry the last losses only and the curve may end earlier: join the two.
  const end = curve.at(-1)?.[0] ?? -Infinity;
  const tail = state.points.filter((point) => point.step > end).map(({ step, loss }) => [step, loss]);
  const pairs = [...curve, ...tail];
  const span = pairs.length > 1 ? pairs.at(-1)[0] - pairs[0][0] : 0;
  const stride = Math.max(1, Math.round(span / Math.max(1, pairs.length - 1)));
  state = addLosses({ ...state, ...emptyCurve(-Infinity), stride }, pairs, Math.max(end, state.lossStep));
  // A process that died could not say so itself: the server's word counts.
  const known = ENDED.has(run.state) || run.state === "stopping";
  return known && !isOver(state) ? { ...state, status: run.state } : state;
}

/** The state after one more event. */
export function reduce(state, event) {
  const next = { ...state, lastTime: event.time ?? state.lastTime };
  switch (event.event) {
    case "started": {
      const from = event.resumed_from ?? 0;
      const kept = state.points.filter((point) => point.step <= from);
      // A resumed run repeats the steps after its state; what was drawn of them no longer holds.
      return addLosses(
        {
          ...next,
          ...emptyCurve(from),
          status: "running",
          phase: null,
          step: from,
          total: event.total_steps,
          started: event.time,
          error: "",
          validations: state.validations.filter((v) => v.step <= from),
        },
        kept.map(({ step, loss }) => [step, loss]),
        from,
      );
    }
    case "phase":
      return { ...next, phase: phaseAfter(state.phase, event) };
    case "progress":
      return withProgress(next, event);
    case "validation": {
      const others = state.validations.filter((v) => v.step !== event.step);
      return { ...next, validations: [...others, { step: event.step, loss: event.loss }].slice(-MAX_POINTS) };
    }
    case "sample":
      return { ...next, sample: { step: event.step, prompt: event.prompt, file: event.file } };
    case "caption":
      return { ...next, step: state.step + 1, caption: { image: event.image, text: event.caption } };
    case "warning":
      return { ...next, warnings: [...state.warnings.filter((w) => w !== event.message), event.message].slice(-20) };
    case "finished":
      return {
        ...next,
        status: event.stopped ? "stopped" : "finished",
        step: Math.max(state.step, event.step ?? 0),
        adapter: event.adapter ?? "",
      };
    case "failed":
      return { ...next, status: "failed", error: event.message };
    default:
      return next;
  }
}

/** Seconds since the start and, where it can be told, until the end. `now` is the server's clock. */
export function times(state, now) {
  const end = isOver(state) ? state.lastTime : Math.max(now, state.lastTime);
  const elapsed = state.started === null ? null : Math.max(0, end - state.started);
  return { elapsed, remaining: isOver(state) ? null : remaining(state, now) };
}

function remaining(state, now) {
  const { phase } = state;
  if (phase?.total > 0 && phase.time > phase.since && phase.done > phase.from) {
    const left = ((phase.total - phase.done) * (phase.time - phase.since)) / (phase.done - phase.from);
    return Math.max(0, left - Math.max(0, now - phase.time));
  }
  if (!(state.rate > 0) || state.stepTime === null) return null;
  return Math.max(0, (state.total - state.step) / state.rate - Math.max(0, now - state.stepTime));
}

function phaseAfter(phase, { name, done = 0, total = 0, detail = "", time }) {
  const same = phase?.name === name && phase.total === total && done >= phase.done;
  const start = same ? { since: phase.since, from: phase.from } : { since: time, from: done };
  return { name, done, total, detail, time, ...start };
}

function withProgress(state, event) {
  const first = event.step - event.losses.length + 1;
  const pairs = event.losses.map((loss, i) => [first + i, loss]).filter(([step]) => step > state.lossStep);
  // Steps are being taken, so whatever came before (loading, sampling, saving) is over.
  const phase = state.phase?.name.startsWith("train") ? state.phase : phaseAfter(null, { name: "training" });
  const progressed = {
    ...state,
    phase,
    step: Math.max(state.step, event.step),
    total: event.total,
    stepTime: event.time,
    rate: event.steps_per_second,
    learningRate: event.learning_rate,
    skipped: event.skipped_steps ?? 0,
    lossIsNumber: event.losses.length ? Number.isFinite(event.losses.at(-1)) : state.lossIsNumber,
  };
  return addLosses(progressed, pairs, Math.max(state.lossStep, event.step));
}

function emptyCurve(lossStep) {
  return { points: [], stride: 1, lossStep, average: { value: 0, weight: 0, step: lossStep } };
}

function addLosses(state, pairs, lossStep) {
  const points = state.points.slice();
  // Diffusion losses scatter widely: smooth over a fiftieth of the run, within reason.
  const span = Math.min(50, Math.max(5, state.total / 50));
  let { average, stride } = state;
  for (const [step, loss] of pairs) {
    if (!Number.isFinite(loss)) continue;
    average = averageWith(average, step, loss, span);
    const point = { step, loss, smooth: average.value / average.weight };
    const last = points.length - 1;
    // The newest point is always shown; if it is too near to the one before, the next replaces it.
    if (last > 0 && points[last].step - points[last - 1].step < stride) points[last] = point;
    else points.push(point);
  }
  while (points.length > MAX_POINTS) {
    stride *= 2;
    points.splice(0, points.length, ...thinned(points, stride));
  }
  return { ...state, points, stride, average, lossStep };
}

// An exponential average that is right from the first value on (weight corrects the start)
// and where a gap of n steps fades the past as n steps would.
function averageWith({ value, weight, step: before }, step, loss, span) {
  const decay = weight ? Math.exp(-Math.max(1, step - before) / span) : 0.5;
  return { value: decay * value + (1 - decay) * loss, weight: decay * weight + (1 - decay), step };
}

function thinned(points, stride) {
  const kept = [];
  for (const point of points) {
    if (!kept.length || point.step - kept.at(-1).step >= stride) kept.push(point);
  }
  if (kept.at(-1) !== points.at(-1)) kept.push(points.at(-1));
  return kept;
}
