// Keeps a page current: when the server tells of a change, the page is fetched again and its live parts are replaced.
// What they look like is thus said in one place, the server's templates.
'use strict'

const TOGETHER_MS = 300
const TYPING_MS = 300
const LISTEN_AGAIN_MS = 5000
// Ages and estimates change by themselves.
const AGES_MS = 15000
const MOST_COPIED = 100000
const ANSWERED_MS = 30000

const { events, every, api } = document.body.dataset

async function refresh() {
  const answer = await fetch(location.href, { headers: { Accept: 'text/html' }, ...inTime() })
  if (answer.redirected) return say('signed out: load the page again')
  if (!answer.ok) throw new Error(answer.statusText)
  const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html')
  for (const part of document.querySelectorAll('[data-live]')) {
    const replacement = fresh.getElementById(part.id)
    if (replacement && replacement.innerHTML !== part.innerHTML && !isSelectedIn(part)) replace(part, replacement)
  }
}

// What somebody is marking stays as it is until the next change.
function isSelectedIn(part) {
  const selection = getSelection()
  return !selection.isCollapsed && part.contains(selection.anchorNode)
}

// Whoever is at a link or button stays there: at the same one, or where it is gone at the one in its place.
function replace(part, replacement) {
  const here = document.activeElement
  const place = part.contains(here) ? focusable(part).indexOf(here) : -1
  part.innerHTML = replacement.innerHTML
  if (place === -1) return
  const now = focusable(part)
  const same = now.find((each) => nameOf(each) === nameOf(here)) || now[Math.min(place, now.length - 1)]
  same?.focus({ preventScroll: true })
}

function focusable(part) {
  return [...part.querySelectorAll('a[href], button, [tabindex]')]
}

function nameOf(element) {
  return [element.getAttribute('href'), element.dataset.action, element.dataset.group].join('\n')
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

function listen() {
  const source = new EventSource(events)
  for (const kind of ['batch', 'finalized', 'resync']) source.addEventListener(kind, changed)
  source.addEventListener('ready', () => say('live'))
  source.addEventListener('error', () => {
    say('reconnecting')
    // A browser comes back by itself after a lost connection, but not after an answer such as 503.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => { listen(); changed() }, LISTEN_AGAIN_MS)
  })
}

if (events && new URLSearchParams(location.search).get('cursor') === null) {
  listen()
  setInterval(changed, AGES_MS)
} else if (every) {
  setInterval(changed, Number(every))
}

// Actions: asked about first, with how many items they touch, then sent to the API.
document.addEventListener('click', async (event) => {
  const button = event.target.closest('button')
  if (!button) return
  const { action, ask, group, revision } = button.dataset
  if ('copy' in button.dataset) {
    try { tell(await copyMissing() + ' ids copied') } catch (error) { tell('this browser does not let the page copy; CSV has them all') }
  } else if ('signOut' in button.dataset) {
    await send('DELETE', '/api/session')
    location.reload()
  } else if (action && confirm(ask)) {
    button.disabled = true
    const name = [api, action, group].join('\n')
    try {
      const body = { ...(group !== undefined && { error: group }), ...(revision && { revision: Number(revision) }) }
      // Only a retry creates something; what else there is names the revision it acts on, and the API takes no key for it.
      const answer = await send('POST', api + '/' + action, body, action === 'retry' ? keyFor(name) : undefined)
      const said = await answer.json()
      if (answer.ok) sessionStorage.removeItem(name)
      if (!answer.ok) tell(said.detail || answer.statusText)
      else if (action === 'retry') location.assign('/batches/' + encodeURIComponent(said.batch_id))
      else { tell(action + ': ' + said.items + ' items'); changed() }
    } catch (error) { tell(String(error)) } finally { button.disabled = false }
  }
})

function tell(text) {
  document.getElementById('said').textContent = text
}

// A retry is one retry, however often its button is pressed, until it has succeeded: what got no answer may have been
// done, and would be made twice. (Not randomUUID, which a page without TLS does not have.)
function keyFor(name) {
  const key = sessionStorage.getItem(name) || crypto.getRandomValues(new Uint32Array(4)).join('-')
  sessionStorage.setItem(name, key)
  return key
}

function send(method, address, body, key) {
  const token = document.querySelector('meta[name=csrf-token]')?.content
  const headers = {
    'Content-Type': 'application/json',
    ...(token && { 'X-CSRF-Token': token }),
    ...(key && { 'Idempotency-Key': key })
  }
  return fetch(address, { method, headers, body: body && JSON.stringify(body), ...inTime() })
}

// Not only those on the page: all that are missing, or all that were found. Returns how many.
async function copyMissing() {
  const ids = []
  for (let cursor = ''; cursor !== null && ids.length < MOST_COPIED;) {
    const asked = new URLSearchParams({ limit: 1000, find: finding(), ...(cursor && { cursor }) })
    const page = await (await fetch(api + '/missing?' + asked, inTime())).json()
    ids.push(...page.item_ids)
    cursor = page.next
  }
  await navigator.clipboard.writeText(ids.join('\n'))
  return ids.length
}

// What is not answered at all would keep a page from ever being fetched again.
function inTime() {
  return { signal: AbortSignal.timeout(ANSWERED_MS) }
}

// Searching is the server's: what is searched for goes into the address, and the page is fetched again.
function finding() {
  return new URLSearchParams(location.search).get('find') || ''
}

let typing = null
document.querySelector('[data-find]')?.addEventListener('input', (event) => {
  clearTimeout(typing)
  typing = setTimeout(() => {
    const address = new URL(location.href)
    address.searchParams.delete('after')
    address.searchParams.set('find', event.target.value)
    history.replaceState(null, '', address)
    changed()
  }, TYPING_MS)
})
