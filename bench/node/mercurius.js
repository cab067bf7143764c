// Mercurius on Fastify, with its own loaders and its compiler of queries.
import Fastify from 'fastify'
import mercurius from 'mercurius'
import { authenticate, clients, page, tasksOf, users } from './data.js'
import { listen } from './processes.js'
import { typeDefs } from './schema.js'

const resolvers = {
  Query: {
    clients: async (_, { first }, { organization }) => ({ nodes: await clients(organization, page(first)) }),
  },
}

const loaders = {
  Client: {
    owner: (queries, { organization }) => ownersOf(organization, queries.map(({ obj }) => obj.owner_id)),
    async tasks(queries, { organization }) {
      // One query's clients ask for as many; several fields that differ are rare, and read one after the other.
      const answers = new Array(queries.length)
      for (const first of new Set(queries.map(({ params }) => page(params.first)))) {
        const places = queries.flatMap(({ params }, place) => (page(params.first) === first ? [place] : []))
        const lists = await tasksOf(organization, places.map((place) => queries[place].obj.id), first)
        places.forEach((place, nth) => { answers[place] = { nodes: lists[nth] } })
      }
      return answers
    },
  },
}

async function ownersOf(organization, ids) {
  const distinct = [...new Set(ids.filter(Boolean))]
  const found = new Map((await users(organization, distinct)).map((user, nth) => [distinct[nth], user]))
  return ids.map((id) => found.get(id) ?? null)
}

listen(async (port) => {
  const app = Fastify()
  const context = (request) => authenticate(request.headers.authorization)
  await app.register(mercurius, { schema: typeDefs, resolvers, loaders, context, jit: 1 })
  await app.listen({ port, host: '127.0.0.1' })
})
