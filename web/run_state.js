// What the page knows of a run: trainer events in, one plain state out. No DOM, no network, no clock.

import { MAX_POINTS, addLosses, emptyCurve } from "./loss_points.js";

// A process that was killed with its server is interrupted.
const ENDED = new Set(["finished", "stopped", "failed", "interrupted"]);

export const isOver = (state) => ENDED.has(state.status);

/** The state before the first event. `run` is as in GET /lora_loom/runs. `attempt`: when the server began the process that is followed. */
function newState(run) {
  return {
    id: run.id,
    status: "running",
    attempt: null,
    precision: "",
    phase: null,
    step: 0,
    total: run.total ?? 0,
    started: null,
    lastTime: null,
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

/** `state` at the beginning of a process that goes on with the run. What was drawn stays until it says from which step it does. */
function begun(state, started) {
  const none = { phase: null, stepTime: null, rate: 0, error: "", adapter: "" };
  return { ...state, ...none, status: "running", attempt: started, started, lastTime: started };
}

/** The state that a run's history leads to: events in order, and the curve as [step, loss] pairs. */
export function fromHistory(run, events, curve) {
  // The file of events goes back to the run's first start; its last words may be those of an earlier process.
  const earlier = events.filter((event) => event.time < run.started);
  const own = events.filter((event) => !(event.time < run.started));
  let state = earlier.reduce(reduce, newState(run));
  if (own.length || !ENDED.has(run.state)) state = own.reduce(reduce, begun(state, run.started));
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
          // The process was begun seconds before it says so.
          started: state.attempt == null ? event.time : state.started,
          precision: event.precision ?? "",
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
      const validation = { step: event.step, loss: event.loss, byDataset: event.by_dataset ?? {} };
      return { ...next, validations: [...others, validation].slice(-MAX_POINTS) };
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

function phaseAfter(phase, { name, done = 0, total = 0, detail = "", time }) {
  const same = phase?.name === name && phase.total === total && done >= phase.done;
  const start = same ? { since: phase.since, from: phase.from } : { since: time, from: done };
  return { name, done, total, detail, time, ...start };
}

function withProgress(state, event) {
  const first = event.step - event.losses.length + 1;
  const pairs = event.losses.map((loss, i) => [first + i, loss]).filter(([step]) => step > state.lossStep);
  // Steps are being taken, so whatever came before (loading, sampling, saving) is over.
  const phase = state.phase?.name.startsWith("train") ? state.phase : phaseAfter(null, { name: "training", time: event.time });
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
