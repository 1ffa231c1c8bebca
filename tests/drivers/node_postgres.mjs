// node-postgres: named statements, cursors, COPY streams, a pool.
import { createRequire } from 'node:module'
import { strict as assert } from 'node:assert'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
const require = createRequire(process.env.NODE_PATH + '/')
const { Pool } = require('pg')
const Cursor = require('pg-cursor')
const { from, to } = require('pg-copy-streams')

const pool = new Pool({ max: 8 })
const rounds = Number(process.env.ROUNDS)
async function session(number) {
  const client = await pool.connect()
  await client.query(`CREATE TABLE IF NOT EXISTS node_${number} (a text)`)
  for (let turn = 0; turn < rounds; turn++) {
    const nonce = `${number}-${turn}`
    const named = await client.query({ name: `s${turn % 3}`, text: `SELECT $1::text AS a, ${turn % 3} AS b`, values: [nonce] })
    assert.deepEqual(named.rows, [{ a: nonce, b: turn % 3 }])
    await assert.rejects(client.query('SELECT 1/$1::int', [0]), { code: '22012' })
    await client.query('BEGIN')
    const cursor = client.query(new Cursor('SELECT generate_series(1, 100)'))
    assert.equal((await cursor.read(40)).length + (await cursor.read(100)).length, 100)
    await cursor.close()
    await pipeline(Readable.from(['a\n', 'b\n']), client.query(from(`COPY node_${number} FROM STDIN`)))
    let text = ''
    for await (const piece of client.query(to(`COPY node_${number} TO STDOUT`))) text += piece
    assert.equal(text, 'a\nb\n')
    await client.query('ROLLBACK')
  }
  client.release()
}
await Promise.all([...Array(8).keys()].map(session))
await pool.end()
console.log(`node-postgres ${require('pg/package.json').version}: ok`)
