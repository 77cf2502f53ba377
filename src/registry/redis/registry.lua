-- The rules of ownership, run by the Redis server so that reactors cannot get in between each other's steps.
-- They are those of table.rs, and one suite of tests holds both to them.
--
-- KEYS: 1 the prefix of all keys, 2 the channel of changes.
-- ARGV: 1 operation, 2 policy, 3 lease of a lookup, 4 warm-up, 5 most streams, 6 most nodes, then the operation's own.
-- Times are milliseconds of the server's clock. Missing values are empty strings.
--
-- stream:NAME   hash: origin session source node epoch guessed since until strikes last hold
-- streams       sorted set of names by "until"; the hash outlives it by SLACK, so that a sweep can tell the epoch
-- node:ID       hash: heartbeat seen lease draining
-- nodes         sorted set of node ids by the end of their lease
-- epoch         the greatest epoch given out
-- ended:SESSION, ended:NAME SOURCE   publishes that ended
-- whole         "RUN_ID TIME": from when on this server knows everything; another run id: it lost its memory

local P, CHANNEL, OP = KEYS[1], KEYS[2], ARGV[1]
local POLICY, LEASE, WARM_UP = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local MAX_STREAMS, MAX_NODES = tonumber(ARGV[5]), tonumber(ARGV[6])
local ENDED_MEMORY, SLACK = 3600000, 60000
local WINDOW, STRIKES, HOLD_MIN, HOLD_MAX = 30000, 4, 10000, 300000

local call = redis.call
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function whole_number(n)
    return string.format('%.0f', n)
end

local function hash(key)
    local flat, fields = call('HGETALL', key), {}
    for i = 1, #flat, 2 do
        fields[flat[i]] = flat[i + 1]
    end
    return fields
end

local function live(name)
    local s = hash(P .. 'stream:' .. name)
    if not s['until'] or tonumber(s['until']) <= now then return nil end
    s.epoch, s['until'], s.since = tonumber(s.epoch), tonumber(s['until']), tonumber(s.since)
    s.strikes, s.last, s.hold = tonumber(s.strikes), tonumber(s.last), tonumber(s.hold)
    return s
end

local function announce(name, origin, epoch)
    local where = ''
    if origin then where = '"origin":' .. cjson.encode(origin) .. ',' end
    call('PUBLISH', CHANNEL,
        '{"stream_name":' .. cjson.encode(name) .. ',' .. where .. '"epoch":' .. whole_number(epoch) .. '}')
end

local function next_epoch(known)
    local last = tonumber(call('GET', P .. 'epoch') or '0')
    local epoch = known or last + 1
    if epoch > last then call('SET', P .. 'epoch', whole_number(epoch)) end
    return epoch
end

local function ended_key(session, name, source)
    if session ~= '' then return P .. 'ended:' .. session end
    return P .. 'ended:' .. name .. ' ' .. source
end

local function set_ended(session, name, source)
    local memory = ENDED_MEMORY
    if session == '' then memory = LEASE end
    call('SET', ended_key(session, name, source), '1', 'PX', memory)
end

local function is_ended(session)
    return session ~= '' and call('EXISTS', P .. 'ended:' .. session) == 1
end

local function leaves(s)
    return s.node ~= '' and call('HGET', P .. 'node:' .. s.node, 'draining') == '1'
end

local function held(s)
    local left = s.last + s.hold - now
    if left > 0 then return left end
    return nil
end

local function store(name, s)
    local key = P .. 'stream:' .. name
    call('HSET', key, 'origin', s.origin, 'session', s.session, 'source', s.source, 'node', s.node,
        'epoch', whole_number(s.epoch), 'guessed', s.guessed, 'since', s.since, 'until', s['until'],
        'strikes', s.strikes, 'last', s.last, 'hold', s.hold)
    call('PEXPIRE', key, s['until'] - now + SLACK)
    call('ZADD', P .. 'streams', s['until'], name)
end

local function insert(name, session, source, origin, known)
    local streams = P .. 'streams'
    if call('ZCARD', streams) >= MAX_STREAMS and not call('ZSCORE', streams, name) then return nil end
    local s = { session = session, source = source, origin = origin, node = '', epoch = next_epoch(known),
        guessed = known and '0' or '1', since = now, strikes = 0, last = 0, hold = 0 }
    announce(name, origin, s.epoch)
    return s
end

local function take_over(name, s, session, source, origin, known)
    set_ended(s.session, name, s.source)
    if not leaves(s) then
        local related = s.last > 0 and now < s.last + WINDOW + 2 * s.hold
        s.strikes = related and s.strikes + 1 or 1
        s.last, s.hold = now, 0
        if s.strikes >= STRIKES then
            s.hold = math.min(HOLD_MIN * 2 ^ math.min(s.strikes - STRIKES, 10), HOLD_MAX)
        end
    end
    s.session, s.source, s.origin, s.node, s.since = session, source, origin, '', now
    s.epoch, s.guessed = next_epoch(known), known and '0' or '1'
    announce(name, origin, s.epoch)
end

local function renew(name, s, origin, node, expiry)
    s['until'] = expiry
    if node ~= '' then s.node = node end
    if s.origin ~= origin then
        s.origin = origin
        announce(name, origin, s.epoch)
    end
    store(name, s)
end

local function lift(name, s, epoch)
    s.epoch, s.guessed = next_epoch(epoch), '0'
    announce(name, s.origin, s.epoch)
    store(name, s)
end

local function finish(name, epoch)
    call('DEL', P .. 'stream:' .. name)
    call('ZREM', P .. 'streams', name)
    announce(name, nil, epoch)
end

local function lease(name, s)
    return { name, s.origin, s.session, s.epoch, s.node, now - s.since, s['until'] - now }
end

-- Milliseconds until this server knows everything; 0 when it does.
local function warming()
    local run_id = string.match(call('INFO', 'server'), 'run_id:(%w+)') or '?'
    local known, since = string.match(call('GET', P .. 'whole') or '', '^(%w+) (%d+)$')
    if known ~= run_id then
        since = now
        call('SET', P .. 'whole', run_id .. ' ' .. whole_number(now))
    end
    return math.max(0, tonumber(since) + WARM_UP - now)
end

local ops = {}

function ops.claim(name, session, node, origin, source)
    if is_ended(session) then return { 'superseded' } end
    local time = LEASE
    if node ~= '' then time = tonumber(call('HGET', P .. 'node:' .. node, 'lease') or LEASE) end
    local s, took = live(name), 0
    if not s then
        if session == '' then call('DEL', ended_key(session, name, source)) end
        s = insert(name, session, source, origin, nil)
        if not s then return { 'full' } end
    elseif s.session ~= session or (session == '' and s.source ~= source) then
        if session == '' and call('DEL', ended_key(session, name, source)) == 1 then return { 'superseded' } end
        if not leaves(s) then
            if POLICY == 'first-wins' then return { 'taken', s.origin } end
            if held(s) then return { 'contested', s.origin, held(s) } end
        end
        take_over(name, s, session, source, origin, nil)
        took = 1
    end
    renew(name, s, origin, node, now + time)
    return { 'ok', lease(name, s), took, took == 1 and held(s) or 0 }
end

function ops.release(name, session)
    set_ended(session, name, '')
    local s = live(name)
    if not s or s.session ~= session then return 0 end
    finish(name, s.epoch)
    return 1
end

function ops.owner(name)
    local s = live(name)
    if s then return { 'ok', lease(name, s) } end
    return { 'none', warming() }
end

function ops.names()
    return call('ZRANGEBYSCORE', P .. 'streams', '(' .. now, '+inf')
end

-- The names follow in ARGV.
function ops.leases()
    local leases = {}
    for i = 12, #ARGV do
        local s = live(ARGV[i])
        if s then leases[#leases + 1] = lease(ARGV[i], s) end
    end
    return leases
end

-- 'owned', 'superseded' or 'full', for one stream of a heartbeat.
local function restore(name, session, known, origin, node, expiry)
    if is_ended(session) then return 'superseded', 0, 0 end
    local s, took = live(name), 0
    if not s then
        s = insert(name, session, '', origin, known)
        if not s then return 'full', 0, 0 end
    elseif s.session == session then
        if known and known > s.epoch then lift(name, s, known) end
    else
        local wins
        if known and known >= s.epoch and s.guessed == '1' then
            lift(name, s, math.max(known, tonumber(call('GET', P .. 'epoch'))) + 1)
            wins = false
        elseif known then
            wins = known > s.epoch or (known == s.epoch and session > s.session)
        else
            wins = leaves(s) or (POLICY == 'takeover' and not held(s))
        end
        if not wins then
            set_ended(session, name, '')
            return 'superseded', 0, 0
        end
        take_over(name, s, session, '', origin, known)
        took = 1
    end
    renew(name, s, origin, node, expiry)
    return 'owned', s.epoch, took
end

-- The streams follow in ARGV, three values each: name, session, epoch.
function ops.heartbeat(node, lease, draining, origin, heartbeat)
    local key = P .. 'node:' .. node
    lease = tonumber(lease)
    if call('ZCARD', P .. 'nodes') >= MAX_NODES and not call('ZSCORE', P .. 'nodes', node) then return {} end
    call('HSET', key, 'heartbeat', heartbeat, 'seen', now, 'lease', lease, 'draining', draining)
    call('PEXPIRE', key, lease)
    call('ZADD', P .. 'nodes', now + lease, node)
    local verdicts = {}
    for i = 12, #ARGV, 3 do
        local name, session, known = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
        local verdict, epoch, took = restore(name, session, known, origin, node, now + lease)
        verdicts[#verdicts + 1] = { verdict, epoch, took }
    end
    return { 1, verdicts }
end

-- The names follow in ARGV.
function ops.leave(node)
    for i = 12, #ARGV do
        local s = live(ARGV[i])
        if s and s.node == node then finish(ARGV[i], s.epoch) end
    end
    return 1
end

function ops.remove_node(node)
    call('ZREM', P .. 'nodes', node)
    return call('DEL', P .. 'node:' .. node)
end

function ops.nodes()
    local nodes = {}
    for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'nodes', '(' .. now, '+inf')) do
        local n = hash(P .. 'node:' .. id)
        if n.seen then nodes[#nodes + 1] = { id, now - tonumber(n.seen), n.heartbeat } end
    end
    return nodes
end

function ops.sweep()
    for _, name in ipairs(call('ZRANGEBYSCORE', P .. 'streams', '-inf', now, 'LIMIT', 0, 1000)) do
        finish(name, tonumber(call('HGET', P .. 'stream:' .. name, 'epoch') or '0'))
    end
    call('ZREMRANGEBYSCORE', P .. 'nodes', '-inf', now)
    return { call('ZCARD', P .. 'streams'), call('ZCARD', P .. 'nodes'), warming() }
end

-- Not all at once: a heartbeat has more values than a Lua call takes.
return ops[OP](ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11])
