// What both servers read, with the same statements: named, so that PostgreSQL plans each once a connection.
import { createVerifier } from 'fast-jwt'
import pg from 'pg'

// Times are not asked for; everything else that is read is text.
const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: Number(process.env.DATABASE_POOL_SIZE ?? 8) })
const verify = createVerifier({
  key: process.env.JWT_SECRET,
  algorithms: ['HS256'],
  allowedIss: 'claviger',
  allowedAud: 'claviger-api',
})

async function rows(name, text, values) {
  return (await pool.query({ name, text, values })).rows
}

// As Claviger does: the signature is checked for each request, session and user are believed for two seconds.
const known = new Map()
const BELIEVED_MS = 2000

export async function authenticate(header) {
  if (!header?.startsWith('Bearer ')) throw new Error('Sign in first.')
  const { sid, sub } = verify(header.slice(7))
  let state = known.get(sid)
  if (!state || state.readAt + BELIEVED_MS < Date.now()) {
    const [row] = await rows(
      'caller',
      `SELECT u.organization_id AS organization FROM sessions s JOIN users u ON u.id = s.user_id
       WHERE s.id = $1 AND u.id = $2 AND s.revoked_at IS NULL AND s.expires_at > now() AND u.status = 'ACTIVE'`,
      [sid, sub],
    )
    if (!row) throw new Error('Sign in first.')
    state = { organization: row.organization, readAt: Date.now() }
    known.set(sid, state)
  }
  return { organization: state.organization }
}

export function clients(organization, first) {
  return rows(
    'clients',
    `SELECT id, name, company, status, owner_id FROM clients
     WHERE organization_id = $1 AND archived_at IS NULL ORDER BY created_at DESC, id DESC LIMIT $2`,
    [organization, first],
  )
}

// In the order of the ids.
export async function users(organization, ids) {
  const found = await rows(
    'users',
    'SELECT id, full_name AS "fullName" FROM users WHERE organization_id = $1 AND id = ANY($2) AND deleted_at IS NULL',
    [organization, ids],
  )
  const byId = new Map(found.map((user) => [user.id, user]))
  return ids.map((id) => byId.get(id) ?? null)
}

// The first tasks of each client, in the order of the clients.
export async function tasksOf(organization, clients, first) {
  const found = await rows(
    'tasks',
    `SELECT t.* FROM unnest($2::text[]) AS c(id) CROSS JOIN LATERAL (
       SELECT id, client_id, title, status FROM tasks
       WHERE organization_id = $1 AND client_id = c.id ORDER BY created_at DESC, id DESC LIMIT $3) AS t`,
    [organization, clients, first],
  )
  const byClient = new Map(clients.map((id) => [id, []]))
  for (const task of found) byClient.get(task.client_id).push(task)
  return clients.map((id) => byClient.get(id))
}

export function page(first = 20) {
  if (first < 1 || first > 100) throw new Error('first must be 1 to 100.')
  return first
}
