// postgres.js: pipelines everything, prepares by default.
import { createRequire } from 'node:module'
import { strict as assert } from 'node:assert'
const require = createRequire(process.env.NODE_PATH + '/')
const postgres = require('postgres')

const sql = postgres({ max: 4, fetch_types: true })
const rounds = Number(process.env.ROUNDS)
await Promise.all([...Array(rounds * 10).keys()].map(async (n) => {
  const [row] = await sql`SELECT ${n}::int AS n, ${'t' + n}::text AS t`
  assert.deepEqual({ ...row }, { n, t: 't' + n })
  if (n % 10 === 0) await assert.rejects(sql`SELECT 1/${0}::int`, { code: '22012' })
  if (n % 7 === 0) {
    const sum = await sql.begin(async (sql) => {
      const [a] = await sql`SELECT ${n}::int AS n`
      const [b] = await sql`SELECT ${a.n}::int + 1 AS n`
      return a.n + b.n
    })
    assert.equal(sum, 2 * n + 1)
  }
}))
let rows = 0
await sql`SELECT generate_series(1, 1000)`.cursor(100, (some) => { rows += some.length })
assert.equal(rows, 1000)
const slow = sql`SELECT pg_sleep(20)`.execute()
setTimeout(() => slow.cancel(), 200)
await assert.rejects(slow, { code: '57014' })
await sql.end()
console.log('postgres.js: ok')
