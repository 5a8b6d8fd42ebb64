// Keeps a page current: when the server tells of a change, the page is fetched again and its live parts are replaced.
// What they look like is thus said in one place, the server's templates.
'use strict'

const TOGETHER_MS = 300

async function refresh() {
  const answer = await fetch(location.href, { headers: { Accept: 'text/html' } })
  if (!answer.ok || answer.redirected) return
  const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html')
  for (const part of document.querySelectorAll('[data-live]')) {
    const replacement = fresh.getElementById(part.id)
    // A part that somebody is working in stays as it is until the next change.
    if (replacement && replacement.innerHTML !== part.innerHTML && !part.contains(document.activeElement)) {
      part.innerHTML = replacement.innerHTML
    }
  }
  search()
  rate()
}

let waiting = null
let busy = false
let again = false
function changed() {
  if (busy) { again = true; return }
  waiting ??= setTimeout(async () => {
    waiting = null
    busy = true
    try { await refresh() } catch (error) { say('waiting for the server') } finally {
      busy = false
      if (again) { again = false; changed() }
    }
  }, TOGETHER_MS)
}

function say(text) {
  document.getElementById('live').textContent = text
}

const { events, every, api } = document.body.dataset
if (events && new URLSearchParams(location.search).get('cursor') === null) {
  const source = new EventSource(events)
  for (const kind of ['batch', 'finalized', 'resync']) source.addEventListener(kind, changed)
  source.addEventListener('ready', () => say('live'))
  source.addEventListener('error', () => say('reconnecting'))
  // Ages and estimates change by themselves.
  setInterval(changed, 15000)
} else if (every) {
  setInterval(changed, Number(every))
}

// Actions: asked about first, with how many items they touch, then sent to the API.
document.addEventListener('click', async (event) => {
  const button = event.target.closest('button')
  if (!button) return
  const { action, ask, group, copy } = button.dataset
  if (copy) {
    const ids = [...document.querySelectorAll(copy + ' li:not([hidden])')].map((each) => each.textContent.trim())
    await navigator.clipboard.writeText(ids.join('\n'))
    button.textContent = 'Copied'
  } else if ('signOut' in button.dataset) {
    await send('DELETE', '/api/session')
    location.reload()
  } else if (action && confirm(ask)) {
    button.disabled = true
    try {
      const body = group === undefined ? {} : { item_ids: await idsOf(group) }
      const answer = await send('POST', api + '/' + action, body)
      const said = await answer.json()
      if (!answer.ok) tell(said.detail || answer.statusText)
      else if (action === 'retry') location.assign('/batches/' + encodeURIComponent(said.batch_id))
      else { tell(action + ': ' + said.items + ' items'); changed() }
    } catch (error) { tell(String(error)) } finally { button.disabled = false; button.blur() }
  }
})

function tell(text) {
  document.getElementById('said').textContent = text
}

function send(method, address, body) {
  const token = document.querySelector('meta[name=csrf-token]')?.content
  const headers = { 'Content-Type': 'application/json', ...(token ? { 'X-CSRF-Token': token } : {}) }
  return fetch(address, { method, headers, body: body && JSON.stringify(body) })
}

// Ids of all items that failed with this error.
async function idsOf(error) {
  const ids = []
  for (let cursor = ''; cursor !== null;) {
    const page = await (await fetch(api + '/items?status=failed&limit=1000' + (cursor && '&cursor=' + encodeURIComponent(cursor)))).json()
    for (const item of page.items) if ((item.error_code || item.error_message || 'no error given') === error) ids.push(item.item_id)
    cursor = page.next
  }
  return ids
}

function search() {
  const field = document.querySelector('[data-find]')
  if (!field) return
  for (const each of document.querySelectorAll(field.dataset.find)) each.hidden = !each.textContent.includes(field.value)
}
document.querySelector('[data-find]')?.addEventListener('input', search)

// Throughput: how fast a number grew since the page was last refreshed.
let before = null
function rate() {
  const shown = document.querySelector('[data-rate]')
  if (!shown) return
  const now = { at: performance.now(), value: Number(shown.dataset.rate) }
  if (before) document.querySelector('[data-rate-of]').textContent = Math.round((now.value - before.value) / (now.at - before.at) * 1000).toLocaleString('en') + ' ' + document.querySelector('[data-rate-of]').dataset.rateOf + '/s'
  before = now
}
rate()
