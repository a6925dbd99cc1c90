"""The script that counts in Redis, what it is asked, and what it tells."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

__all__ = ["BUCKETS", "SCRIPT", "Asked", "Dimension", "Operation", "Told", "argument", "told_of"]

BUCKETS = 600
"""Of a window. What is used counts for one to two of these parts more than the window: 0.1 to 0.2 s of 60 s. That is
what exactness costs here, and what a request may take longer on its way than the next."""


class Dimension(NamedTuple):
    """One of the two limits, and what is asked of it."""

    limit: int
    """Within the window; -1: none."""
    bucket: int
    """Microseconds in which uses are counted together: a 600th of the window."""
    need: int
    """Nothing less is of use."""
    ask: int
    """What would be of use."""


class Operation(NamedTuple):
    """A correction of what the script has counted."""

    dimension: int
    """1: requests, 2: tokens."""
    source: int | None
    """The bucket where it is counted now; None: nowhere."""
    target: float
    """The bucket where it belongs, -1: nowhere; without `source`: when it was used, on this machine's steady clock."""
    amount: int


class Asked(NamedTuple):
    """One call of the script."""

    member: str
    epoch: str
    """Which life of the counts the caller knows; empty: none."""
    number: int
    """Of the batch of operations: a batch that comes twice is carried out once."""
    mode: Literal["take", "tell", "bye"]
    valid: int
    """Microseconds that a lease may be used."""
    dimensions: tuple[Dimension, Dimension]
    push: int
    """Microseconds in which nobody is to pass."""
    known: int
    """How many shared the quota when the caller last heard."""
    recount: bool
    """The counts were lost, and the operations are all that the caller used."""


class Told(NamedTuple):
    """What the script answered. Times are microseconds on the server's clock."""

    status: int
    """1: granted, 0: not, -1: the counts are not those that the caller knows, 2: nothing was asked for."""
    granted: tuple[int, int]
    buckets: tuple[int, int]
    now: int
    wait: int
    pushed: bool
    live: int
    free: tuple[int, int]
    epoch: str


def argument(asked: Asked, operations: Iterable[Operation], now: float) -> str:
    """As the script takes it; `now` on this machine's steady clock.

    One text, as the answer is one: the client's work is by the piece, and would be most of what a call costs.
    """
    requests, tokens = asked.dimensions
    made: list[str | int] = [
        asked.member,
        asked.epoch or "-",
        asked.number,
        asked.mode,
        asked.valid,
        *requests,
        *tokens,
        asked.push,
        asked.known,
        int(asked.recount),
    ]
    for dimension, source, target, amount in operations:
        if source is None:
            made += (dimension, "a", max(0, int((now - target) * 1e6)), amount)
        else:
            made += (dimension, source, int(target), amount)
    return " ".join(map(str, made))


def told_of(reply: Any) -> Told:
    """What the reply says. ValueError, TypeError: it is none of the script's."""
    *numbers, epoch = (reply.decode() if isinstance(reply, bytes) else str(reply)).split(" ")
    status, requests, tokens, first, second, now, wait, pushed, live, free, more = map(int, numbers)
    return Told(status, (requests, tokens), (first, second), now, wait, bool(pushed), live, (free, more), epoch)


SCRIPT = """
-- KEYS: the counts (a hash), the members (a hash). All times in microseconds, on the clock of this server.
local K, M, A = KEYS[1], KEYS[2], {}
for word in string.gmatch(ARGV[1], '%S+') do A[#A + 1] = word end
local id, known_epoch, number, mode, valid = A[1], A[2], tonumber(A[3]), A[4], tonumber(A[5])
local push, others, recount = tonumber(A[14]), tonumber(A[15]), A[16] == '1'
local FORGET, GRACE = 300000000, 100000
local function text(x) return string.format('%.0f', x) end

local s = redis.call('HMGET', K, 'epoch', 'shift', 'now', 'push', 'v', 'ur', 'hr', 'ut', 'ht', 'kb', 'kr', 'kt', 'kn')
local t = redis.call('TIME')
local shift, last = tonumber(s[2]) or 0, tonumber(s[3]) or 0
local now = t[1] * 1000000 + t[2] + shift
if now < last then  -- the clock was set back: time stands still instead
  shift = shift + last - now
  now = last
end
local pushed, V = tonumber(s[4]) or 0, tonumber(s[5]) or 0
local block = {b = tonumber(s[10]) or 0, r = tonumber(s[11]) or 0, t = tonumber(s[12]) or 0, left = tonumber(s[13])}

-- What is used counts in its bucket until a whole window and one bucket after the end of the bucket.
local function dimension(c, at, used, head)
  local d = {c = c, limit = tonumber(A[at]), w = tonumber(A[at + 1]), need = tonumber(A[at + 2]),
             ask = tonumber(A[at + 3]), used = tonumber(used) or 0, head = tonumber(head)}
  d.period = 600 * d.w
  local cut = math.floor((now - d.period) / d.w) - 1
  if not d.head then d.head = cut end
  if d.head < cut and d.limit > 0 then
    local names = {}
    for i = d.head, math.min(cut - 1, d.head + 660 + math.ceil(1000000 / d.w)) do names[#names + 1] = c .. text(i) end
    local gone = false
    for i, amount in ipairs(redis.call('HMGET', K, unpack(names))) do
      if amount then d.used, gone = d.used - tonumber(amount), true end
    end
    if gone then redis.call('HDEL', K, unpack(names)) end
    d.head = cut
  end
  return d
end
local R, T = dimension('r', 6, s[6], s[7]), dimension('t', 10, s[8], s[9])
local D = {R, T}

local function put(d, i, n)
  if n > 0 and i >= d.head then
    redis.call('HINCRBY', K, d.c .. text(i), text(n))
    d.used = d.used + n
  end
end
local function drop(d, i, n)
  local name = d.c .. text(i)
  local have = i >= d.head and tonumber(redis.call('HGET', K, name)) or 0
  n = math.min(n, have)
  if n > 0 then
    if n == have then redis.call('HDEL', K, name) else redis.call('HINCRBY', K, name, text(-n)) end
    d.used = d.used - n
  end
  return math.max(n, 0)
end
local function part(r, t)  -- of the quota of a window
  return (R.limit > 0 and r / R.limit or 0) + (T.limit > 0 and t / T.limit or 0)
end

local epoch = s[1]
if not epoch then epoch = text(now) .. '-' .. id end
local me = {due = 0, back = 0, r = 0, t = 0, number = 0}

local function answer(status, r, t, b, wait, live)
  if push > 0 then pushed = math.max(pushed, now + push) end
  redis.call('HSET', K, 'epoch', epoch, 'shift', text(shift), 'now', text(now), 'push', text(pushed),
    'v', string.format('%.17g', V), 'ur', text(R.used), 'hr', text(R.head), 'ut', text(T.used), 'ht', text(T.head))
  if block.left then
    redis.call('HSET', K, 'kb', text(block.b), 'kr', text(block.r), 'kt', text(block.t), 'kn', text(block.left))
  end
  if mode == 'bye' then
    redis.call('HDEL', M, id)
  elseif status >= 0 then
    redis.call('HSET', M, id, string.format('%.0f %.0f %.0f %.0f %.0f %.0f %.17g',
      now, me.due, me.back, me.r, me.t, me.number, me.v))
  end
  local keep = text(FORGET / 500 + math.max(0, pushed - now) / 1000 + (R.period + T.period) / 1000)
  redis.call('PEXPIRE', K, keep)
  redis.call('PEXPIRE', M, keep)
  return string.format('%.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %.0f %s', status, r, t,
    math.floor(b / R.w), math.floor(b / T.w), now, math.ceil(wait), pushed > now and 1 or 0, live,
    math.max(-1, R.limit - R.used), math.max(-1, T.limit - T.used), epoch)
end

-- Who knows another epoch has used what is not counted here. Until all of those have told what they used, the rest of
-- the quota counts as used.
if known_epoch ~= '-' and known_epoch ~= epoch then
  if not block.left then
    block = {b = now, r = 0, t = 0, left = others}
    for _, d in ipairs(D) do
      if d.limit > 0 then
        block[d.c] = math.max(0, d.limit - d.used)
        put(d, math.floor(now / d.w), block[d.c])
      end
    end
  end
  return answer(-1, 0, 0, now, 0, others)
end

local function member(row)
  local seen, due, back, r, t, number, v = string.match(row, '(%S+) (%S+) (%S+) (%S+) (%S+) (%S+) (%S+)')
  return {seen = tonumber(seen), due = tonumber(due), back = tonumber(back), r = tonumber(r), t = tonumber(t),
          number = tonumber(number), v = tonumber(v)}
end
local mine, live, active, wanting = redis.call('HGET', M, id), 1, 1, {}
if mine then me = member(mine) end
me.v = me.v or 0

if number > me.number then
  me.number = number
  for i = 17, #A, 4 do
    local d, source, target, n = D[tonumber(A[i])], A[i + 1], tonumber(A[i + 2]), tonumber(A[i + 3])
    if source == 'a' then
      local bucket = math.floor((now - target) / d.w)
      if recount and bucket >= d.head then
        block[d.c] = block[d.c] - drop(d, math.floor(block.b / d.w), math.min(n, block[d.c]))
      end
      put(d, bucket, n)
    elseif target < 0 then
      n = drop(d, tonumber(source), n)
      if d.limit > 0 then me.v = me.v - n / d.limit end
    else
      put(d, target, drop(d, tonumber(source), n))
    end
  end
  if recount and block.left then
    block.left = math.max(0, block.left - 1)
    if block.left == 0 then
      for _, d in ipairs(D) do
        drop(d, math.floor(block.b / d.w), block[d.c])
        block[d.c] = 0
      end
    end
  end
end

local rows = redis.call('HGETALL', M)
for i = 1, #rows, 2 do
  if rows[i] ~= id then
    local other = member(rows[i + 1])
    other.id = rows[i]
    if now - other.seen > FORGET then
      redis.call('HDEL', M, other.id)
    else
      live = live + 1
      local waits = other.due > 0 and now < other.due + GRACE
      if not waits then other.due = 0 end
      if waits or now < other.back then wanting[#wanting + 1] = other end
      if waits or now - other.seen < 2 * valid then active = active + 1 end
    end
  end
end

if mode ~= 'take' then return answer(2, 0, 0, now, math.max(0, pushed - now), live) end
if push > 0 then pushed = math.max(pushed, now + push) end
me.r, me.t = R.need, T.need
if now < pushed then
  me.due = 0
  return answer(0, 0, 0, now, pushed - now, live)
end

-- A lease is at most what the quota gives in the time for which it is valid, shared by all who ask.
for _, d in ipairs(D) do
  if d.limit > 0 then
    d.want = math.max(d.need, math.min(d.ask, math.floor(d.limit * valid / d.period / active)))
  else
    d.want = math.max(d.need, d.ask)
  end
end

-- Fair: who got more leaves to those who got less, and want their share, what they lack of as much. What a process did
-- not ask for it has saved, up to its share of one window.
me.v = math.max(me.v, V - 1 / active)
local before, look, both = {r = 0, t = 0}, valid, R.limit > 0 and T.limit > 0 and 2 or 1
for _, other in ipairs(wanting) do
  if other.v < me.v or (other.v == me.v and other.id < id) then
    local lacks = math.min(me.v - other.v, 1 / active) / both
    local waits = other.due > 0
    before.r = before.r + math.max(waits and other.r or 0, math.floor(lacks * R.limit))
    before.t = before.t + math.max(waits and other.t or 0, math.floor(lacks * T.limit))
    look = math.min(look, math.max(1000, math.max(other.back, waits and other.due + GRACE or 0) - now))
  end
end

local wait = 0
for _, d in ipairs(D) do
  if d.limit > 0 and d.need > 0 then
    local free = d.limit - d.used - before[d.c]
    if free < d.need then
      local missing, names = d.need - free, {}
      local ends = math.floor((now + valid - d.period) / d.w) - 2  -- the last bucket that is free by then
      for i = d.head, ends do names[#names + 1] = d.c .. text(i) end
      local when = valid
      if #names > 0 then
        for i, amount in ipairs(redis.call('HMGET', K, unpack(names))) do
          missing = missing - (tonumber(amount) or 0)
          if missing <= 0 then
            when = (d.head + i + 1) * d.w + d.period - now
            break
          end
        end
      end
      wait = math.max(wait, when, 500)
    else
      d.want = math.min(d.want, free)
    end
  elseif d.limit > 0 then
    d.want = 0
  end
end
if wait > 0 then
  wait = math.min(wait, look)
  me.due = now + wait
  return answer(0, 0, 0, now, wait, live)
end
local step = part(R.want, T.want)
me.due, me.v = 0, me.v + step
-- Who wants its whole share is back before so much of it has come up again.
local longest = math.max(R.limit > 0 and R.period or 0, T.limit > 0 and T.period or 0)
me.back = now + math.min(2000000, math.max(valid / 5, step * longest * active))
V = math.max(V, me.v)
for _, d in ipairs(D) do
  if d.limit > 0 then put(d, math.floor((now + valid) / d.w), d.want) end
end
return answer(1, R.want, T.want, now + valid, 0, live)
"""
