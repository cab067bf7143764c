// Apollo Server on Express, the integration that its documentation begins with.
import { ApolloServer } from '@apollo/server'
import { expressMiddleware } from '@as-integrations/express5'
import DataLoader from 'dataloader'
import express from 'express'
import { authenticate, clients, page, tasksOf, users } from './data.js'
import { listen } from './processes.js'
import { typeDefs } from './schema.js'

const resolvers = {
  Query: {
    clients: async (_, { first }, { organization }) => ({ nodes: await clients(organization, page(first)) }),
  },
  Client: {
    owner: (client, _, { loaders }) => client.owner_id && loaders.users.load(client.owner_id),
    tasks: async (client, { first }, { loaders }) => ({ nodes: await loaders.tasks(page(first)).load(client.id) }),
  },
}

// Made for each request, never shared.
function loadersFor(organization) {
  const byFirst = new Map()
  const tasks = (first) => {
    if (!byFirst.has(first)) byFirst.set(first, new DataLoader((ids) => tasksOf(organization, ids, first)))
    return byFirst.get(first)
  }
  return { users: new DataLoader((ids) => users(organization, ids)), tasks }
}

listen(async (port) => {
  const server = new ApolloServer({ typeDefs, resolvers })
  await server.start()
  const context = async ({ req }) => {
    const { organization } = await authenticate(req.headers.authorization)
    return { organization, loaders: loadersFor(organization) }
  }
  const app = express().disable('x-powered-by').disable('etag')
  app.use('/graphql', express.json(), expressMiddleware(server, { context }))
  await new Promise((ready) => app.listen(port, '127.0.0.1', ready))
})
