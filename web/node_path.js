// How ComfyUI's server names nodes: "3" is a node of the workflow, "5:3" is node 3 in the subgraph of its node 5.

/** Whether `path` leads to `node`, from the workflow that it is in. */
export function leadsTo(path, node) {
  let graph = node.graph?.rootGraph;
  let found = null;
  for (const id of String(path).split(":")) {
    found = graph?.getNodeById(id);
    graph = found?.subgraph;
  }
  return found === node;
}

/** The path to `node`; the first where a subgraph is used more than once, null for a node that is in no workflow. */
export function pathTo(node) {
  const root = node.graph?.rootGraph;
  const inside = (graph) => {
    if (graph === node.graph) return [node.id];
    for (const { id, subgraph } of graph.nodes) {
      const rest = subgraph && inside(subgraph);
      if (rest) return [id, ...rest];
    }
    return null;
  };
  return (root && inside(root)?.join(":")) ?? null;
}
