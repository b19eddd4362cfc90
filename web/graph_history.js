// The steps that Ctrl+Z takes back.

import { app } from "../../scripts/app.js";

/** Makes what was changed a step. `resized`: a node is going to follow its content's new height, which is the same step. */
export async function addStep(resized) {
  const history = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
  if (!resized) return history?.checkState();
  history?.beforeChange();
  // Nodes 2.0 measure their elements after a frame is drawn, and tell the graph in the next.
  for (let frame = 0; frame < 3; frame++) await new Promise(requestAnimationFrame);
  history?.afterChange();
}
