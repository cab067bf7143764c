// One process, or as many as WORKERS says, on one port.
import cluster from 'node:cluster'

export async function listen(serve) {
  const port = Number(process.env.PORT)
  const workers = Number(process.env.WORKERS ?? 1)
  if (workers > 1 && cluster.isPrimary) {
    for (let n = 0; n < workers; n += 1) cluster.fork()
    process.on('SIGTERM', () => process.exit(0))
    let ready = 0
    cluster.on('listening', () => { if (++ready === workers) console.log('listens') })
    return
  }
  await serve(port)
  if (!cluster.isWorker) console.log('listens')
}
