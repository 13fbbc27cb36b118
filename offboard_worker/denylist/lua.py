"""The Lua that keeps Redis's copy of the denial log exact: each text is one atomic step. No Python logic here.

Every projection that is written anew gets a random `build`; `<log id>~<build>` names a *history*. Within one history
entry N is the same fact for ever, so a copy may be behind or ahead but never different. `count` is how many facts
there must be: a facts hash that was deleted, evicted or half written is thereby told from an empty denylist.

Parts that several scripts begin with are texts of their own (`_NOW`, `_META`). KEYS[1] is always meta, KEYS[2] facts.
"""

from __future__ import annotations

_NOW = """
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
"""

# Without a shebang, so that a Redis 6 takes them as well. `intact` is the only state in which a copy may be believed.
_META = """
local meta = redis.call('HMGET', KEYS[1], 'id', 'build', 'seq', 'count', 'since', 'server')
local present = meta[1] and meta[2] and meta[3] and meta[4] and true or false
local history = present and (meta[1] .. '~' .. meta[2]) or ''
local intact = present and tonumber(meta[4]) == redis.call('HLEN', KEYS[2])
"""

# Both parts are needed: a restart changes the run id, a failover (also there and back) the replication id.
_SERVER = """
local function line(section, name)
  return string.match(redis.call('INFO', section), name .. ':(%w+)') or ''
end
local server = line('server', 'run_id') .. '-' .. line('replication', 'master_replid')
"""

READ = (
    _META
    + _NOW
    + _SERVER
    + """
local since = meta[5] or '0'
if present and meta[6] ~= server then
  since = now
  redis.call('HSET', KEYS[1], 'server', server, 'since', since)
end
if ARGV[1] == '1' then redis.call('HSET', KEYS[1], 'settled', now) end
return {history, meta[3] or '0', intact and 1 or 0, since, now, server, redis.call('HLEN', KEYS[2]),
        redis.call('HGETALL', KEYS[3])}
"""
)
"""KEYS meta facts replicas; ARGV 1 to write (so that a WAIT behind it covers all that came before)."""

PUSH = (
    _META
    + """
if not intact then return {-1, history, meta[3] or '0'} end
if history ~= ARGV[1] or meta[3] ~= ARGV[2] then return {0, history, meta[3]} end
local seq = tonumber(ARGV[2])
for i = 4, #ARGV do
  seq = seq + 1
  local id = string.format('%.0f-0', seq)
  local added = redis.pcall('XADD', KEYS[3], 'MAXLEN', '~', ARGV[3], id, 'e', ARGV[i], 'id', history)
  if type(added) == 'table' and added.err then
    if i == 4 and string.find(added.err, 'equal or smaller', 1, true) then return {-1, history, meta[3]} end
    return added
  end
  for _, fact in ipairs(cjson.decode(ARGV[i])[2]) do redis.call('HSET', KEYS[2], fact[1], fact[2]) end
end
local stands = string.format('%.0f', seq)
redis.call('HSET', KEYS[1], 'seq', stands, 'count', redis.call('HLEN', KEYS[2]))
return {1, history, stands}
"""
)
"""KEYS meta facts log; ARGV history, seq that it must continue, stream length, entries. Refuses gaps and overlaps."""

STAGE = """
for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return redis.call('HLEN', KEYS[1])
"""
"""KEYS staged facts; ARGV seconds after which an abandoned one disappears, key and value pairs."""

FLIP = (
    _META
    + _NOW
    + _SERVER
    + """
if history ~= ARGV[1] or (meta[3] or '0') ~= ARGV[2] then return {0, history, meta[3] or '0'} end
if redis.call('HLEN', KEYS[4]) ~= tonumber(ARGV[6]) then return {-1, history, meta[3] or '0'} end
redis.call('UNLINK', KEYS[2], KEYS[3], KEYS[5])
if tonumber(ARGV[6]) > 0 then
  redis.call('RENAME', KEYS[4], KEYS[2])
  redis.call('PERSIST', KEYS[2])
end
redis.call('HSET', KEYS[1], 'id', ARGV[3], 'build', ARGV[4], 'seq', ARGV[5], 'count', ARGV[6],
           'since', now, 'server', server)
return {1, ARGV[3] .. '~' .. ARGV[4], ARGV[5]}
"""
)
"""KEYS meta facts log staged replicas; ARGV history and seq found, then id, build, seq and count of the new projection.

What replicas had applied was of the old history: their list begins anew, and counts as complete a lease after `since`.
"""

BEAT = (
    _META
    + _NOW
    + """
local said = redis.call('HGET', KEYS[3], ARGV[1])
if said and tonumber(string.match(said, '%d+$')) >= tonumber(ARGV[5]) then return {'', '0'} end
local applied = (intact and history == ARGV[2]) and ARGV[3] or '0'
redis.call('HSET', KEYS[3], ARGV[1], applied .. ':' .. ARGV[4] .. ':' .. now .. ':' .. ARGV[5])
if not intact then return {'', '0'} end
return {history, meta[3]}
"""
)
"""KEYS meta facts replicas; ARGV replica, its history, its applied seq, its lease in ms, the heartbeat's number.

Always a write, except for a heartbeat that was overtaken by a newer one of the same replica (on another connection,
after a time-out): that one must not take back what the newer one said, and nobody reads its answer any more.
"""

SNAPSHOT = (
    _META
    + _SERVER
    + """
if not intact then return {'', '0', '0', {}, ''} end
local all = {}
if tonumber(meta[4]) <= tonumber(ARGV[1]) then all = redis.call('HGETALL', KEYS[2]) end
return {history, meta[3], meta[4], all, server}
"""
)
"""KEYS meta facts; ARGV how many facts may be read at once (more are read by HSCAN, then SNAPSHOT_END)."""

SNAPSHOT_END = (
    _META
    + _SERVER
    + """
if not intact then return {'', '0', '0', {}, ''} end
return {history, meta[3], meta[4], redis.call('XRANGE', KEYS[3], ARGV[1], meta[3] .. '-0'), server}
"""
)
"""KEYS meta facts log; ARGV id of the first entry that may have come during the scan."""

PRUNE = (
    _META
    + """
if not intact then return 0 end
local gone = 0
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[2], ARGV[i]) == ARGV[i + 1] then gone = gone + redis.call('HDEL', KEYS[2], ARGV[i]) end
end
if gone > 0 then redis.call('HSET', KEYS[1], 'count', redis.call('HLEN', KEYS[2])) end
return gone
"""
)
"""KEYS meta facts; ARGV key and value pairs, each removed only if it still has that value."""

FORGET = """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('HDEL', KEYS[1], ARGV[1]) end
return 0
"""
"""KEYS replicas; ARGV replica and what it last said: one that has spoken since then stays."""
