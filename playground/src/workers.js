// Where Monaco gets its workers: files beside this one, so that `worker-src 'self'` is enough.
const FILES = { json: 'json.worker.js', graphql: 'graphql.worker.js' };

globalThis.MonacoEnvironment = {
  getWorker: (_id, label) => new Worker(new URL(FILES[label] ?? 'editor.worker.js', import.meta.url), { name: label }),
};
