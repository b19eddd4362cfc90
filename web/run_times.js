// How long a run has taken, and how long it will.

import { isOver } from "./run_state.js";

/** Phases that are the work itself; the others prepare it, or interrupt it. */
const WORK = /^(train|caption)/;

/**
 * {elapsed, remaining, ofPhase}: seconds since the start, and until the end; null where that cannot be told. `ofPhase`: until the end of
 * the phase only. `now` is the server's clock.
 */
export function times(state, now) {
  const end = isOver(state) ? state.lastTime : Math.max(now, state.lastTime);
  const elapsed = state.started === null ? null : Math.max(0, end - state.started);
  return { elapsed, remaining: null, ofPhase: false, ...(isOver(state) ? {} : left(state, now)) };
}

function left(state, now) {
  const works = WORK.test(state.phase?.name ?? "");
  if (state.rate > 0 && state.step < state.total) {
    const remaining = (state.total - state.step) / state.rate;
    // Pictures that are drawn in between take no steps.
    const since = Math.max(state.stepTime, state.phase?.since ?? 0);
    return { remaining: works ? Math.max(0, remaining - Math.max(0, now - since)) : remaining };
  }
  const { done, total, from, time, since } = state.phase ?? {};
  if (!(total > 0 && time > since && done > from)) return {};
  const remaining = ((total - done) * (time - since)) / (done - from);
  return { remaining: Math.max(0, remaining - Math.max(0, now - time)), ofPhase: !works };
}
