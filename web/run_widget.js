// Puts the run widget on a node and keeps it on the run that the node started.

import { followHeight, onGraph, shareEvents } from "./dom.js";
import { leadsTo, pathTo } from "./node_path.js";
import { serverNow, stopRun, watch } from "./run_feed.js";
import { turnOf } from "./run_queue.js";
import { settingsOf } from "./run_settings.js";
import { isOver } from "./run_state.js";
import { buildRunView, showRun } from "./run_view.js";

const MARGIN = 6;
const BORDERS = 2;
const CURVE_MIN_HEIGHT = 110;
const IDLE_HEIGHT = 44;

/** Adds the widget to `node`. `task` is the kind of run that the node starts. */
export function addRunWidget(node, { task, curve }) {
  const view = buildRunView(curve);
  let state = null;
  let settings = null;
  let asked = false;
  let problem = "";
  let frame = 0;
  let ticker = 0;
  let unwatch = null;

  const fixed = () => 2 * MARGIN + BORDERS + (view.plot.hidden ? 0 : CURVE_MIN_HEIGHT);
  const measured = followHeight(node, view.root, [view.top, view.bottom], fixed, IDLE_HEIGHT);
  const widget = node.addDOMWidget("lora_loom_run", "LOOM_RUN", view.root, {
    serialize: false, // not sent with the prompt
    margin: MARGIN,
    getMinHeight: () => measured.height(),
    // Without a curve there is nothing that could use more room.
    getMaxHeight: () => (view.plot.hidden ? measured.height() : undefined),
  });
  widget.serialize = false; // not among a saved graph's widgets_values

  const render = () => {
    frame = 0;
    const running = state && !isOver(state);
    const turn = running ? "" : turnOf(node);
    showRun(view, state, { turn, changed: !running && isChanged(), asked, problem, now: serverNow() });
    measured.measure();
  };
  /** Whether the run had other settings than the node has now. */
  const isChanged = () => {
    const path = settings === null ? null : pathTo(node);
    return path !== null && settingsOf(node.graph.rootGraph.serialize(), path) !== settings;
  };
  const renderSoon = () => (frame ||= requestAnimationFrame(render));
  // A canvas has to be drawn anew at each size.
  new ResizeObserver(renderSoon).observe(view.plot);

  const watcher = {
    owns: (run, askers) => run.task === task && askers.some(({ workflow, node: path }) => isAt(node, workflow, path)),
    workflowOf: (path) => (leadsTo(path, node) ? node.graph.rootGraph.id : null),
    show(newState, newSettings) {
      const isAnother = newState?.id !== state?.id || newState?.attempt !== state?.attempt;
      if (isAnother) problem = "";
      // A run that was stopped goes on under the same id, and can be stopped again.
      if (isAnother || (newState && isOver(newState))) asked = false;
      state = newState;
      settings = newSettings;
      clearInterval(ticker);
      if (unwatch && state && !isOver(state)) ticker = setInterval(renderSoon, 1000);
      renderSoon();
    },
  };
  view.stop.addEventListener("click", async () => {
    asked = true;
    problem = "";
    renderSoon();
    try {
      await stopRun(state.id);
    } catch (error) {
      asked = false;
      problem = `Could not stop the run: ${error.message}`;
      renderSoon();
    }
  });
  onGraph(
    node,
    view.root,
    () => (unwatch ??= watch(watcher)),
    () => {
      unwatch?.();
      unwatch = null;
      clearInterval(ticker);
    },
  );
  shareEvents(view.root);
  render();
}

const isAt = (node, workflow, path) => node.graph?.rootGraph?.id === workflow && leadsTo(path, node);
