// What the official parser says of the document on standard input: its diagnostics as JSON.
import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'

const { Parser } = createRequire(process.argv[2] + '/')('@asyncapi/parser')
const { document, diagnostics } = await new Parser().parse(readFileSync(0, 'utf8'))
const channels = document ? document.channels().all().map((each) => [each.address(), each.messages().all().map((message) => message.name())]) : []
console.log(JSON.stringify({ diagnostics, channels: Object.fromEntries(channels) }))
