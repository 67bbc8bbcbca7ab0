"""What Redis does in one step for a roster: scripts in Lua. The module of the roster describes the keys.

All scripts have two keys, the epoch and the generation, and make the names of the others. No script takes longer for a
room with many members, except the one that returns them all.
"""

from __future__ import annotations

from .redis_scripts import EPOCH, Script

# What it finds missing, Redis has forgotten: forget() lets another generation begin.
_ROSTER = (
    EPOCH
    + """
local clock = redis.call('TIME')
local microseconds = clock[1] * 1000000 + clock[2]
local now = math.floor(microseconds / 1000)
local day = 86400
local epoch = redis.call('GET', KEYS[1]) or begin(KEYS[1], run())
local began_in, generation = string.match(redis.call('GET', KEYS[2]) or '', '^(.*)/(%d+)$')
if began_in ~= epoch then
    generation = string.format('%.0f', microseconds)
    redis.call('SET', KEYS[2], epoch .. '/' .. generation, 'EX', day)
end
local function key(name, rest)
    return KEYS[2] .. ':' .. generation .. ':' .. name .. (rest or '')
end
local owners, dead, gone, leaving, heard = key('owners'), key('dead'), key('gone'), key('leaving'), key('heard')

local function forget()
    redis.call('DEL', KEYS[2])
    return {'unknown'}
end

-- Returns what is known about a lease: held, lost, unknown, or new.
local function state(owner, held_in)
    if held_in ~= '' and held_in ~= generation then
        return 'unknown'
    elseif redis.call('ZSCORE', owners, owner) then
        if redis.call('ZSCORE', key('owned:', owner), '') then
            return 'held'
        end
        forget()
        return 'unknown'
    elseif redis.call('ZSCORE', gone, owner) then
        return 'lost'
    elseif held_in ~= '' then
        forget()
        return 'unknown'
    end
    return 'new'
end

local function join(room, member, connection)
    return #room .. ':' .. #member .. ':' .. room .. member .. connection
end
local function split(joined)
    local room, member, start = string.match(joined, '^(%d+):(%d+):()')
    return string.sub(joined, start, start + room - 1), string.sub(joined, start + room, start + room + member - 1)
end

-- Returns when a member came, how many connections it has, the call that has entered it, and its data; or nil.
local function find(members, member)
    local value = redis.call('HGET', members, member)
    if value then
        return string.match(value, '^(%d+):(%d+):([^:]*):(.*)$')
    end
end
local function put(members, member, since, count, call, data)
    redis.call('HSET', members, member, since .. ':' .. count .. ':' .. call .. ':' .. data)
end

-- Takes a connection from a member, whose grace is over at a time if it was the last one. Returns whether all is there.
local function leave(room, member, at)
    local members = key('members:', room)
    local since, count, call, data = find(members, member)
    if not since or count == '0' then
        return false
    end
    put(members, member, since, count - 1, call, data)
    if count == '1' then
        local leaving_room = key('leaving:', room)
        redis.call('ZADD', leaving_room, at, member)
        redis.call('ZADD', leaving, 'LT', at, room)
        redis.call('EXPIRE', leaving_room, day)
        redis.call('EXPIRE', leaving, day)
    end
    return true
end

-- Ends a lease, whose connections have left at a time.
local function bury(owner, at)
    redis.call('ZREMRANGEBYSCORE', gone, '-inf', now - day * 1000)
    redis.call('ZREM', owners, owner)
    redis.call('ZADD', dead, at, owner)
    redis.call('ZADD', gone, now, owner)
    redis.call('EXPIRE', dead, day)
    redis.call('EXPIRE', gone, day)
end

-- Lets some connections of dead processes leave, which should have prolonged their leases some time before the end.
-- Returns how many have left, and whether there may be more.
local function reap(most, overdue)
    local ended = redis.call('ZRANGEBYSCORE', owners, '-inf', now, 'WITHSCORES', 'LIMIT', 0, most)
    for i = 1, #ended, 2 do
        bury(ended[i], ended[i + 1] - overdue)
    end
    local reaped = 0
    while reaped < most do
        local owner, at = unpack(redis.call('ZRANGE', dead, 0, 0, 'WITHSCORES'))
        if not owner then
            return reaped, false
        end
        local connections = redis.call('ZPOPMIN', key('owned:', owner), most - reaped)
        local is_complete = #connections > 0
        for i = 1, #connections, 2 do
            if connections[i] == '' then
                redis.call('ZREM', dead, owner)
            else
                local room, member = split(connections[i])
                is_complete = leave(room, member, at + connections[i + 1]) and is_complete
                reaped = reaped + 1
            end
        end
        if not is_complete then
            forget()
            return reaped, true
        end
    end
    return reaped, true
end

-- Returns whether Redis was cut off from all processes, according to when one has swept.
local function was_silent(silent_after, dead_after)
    local silence = now - (redis.call('GET', heard) or now)
    return silence > tonumber(silent_after) and silence < tonumber(dead_after)
end
"""
)

#: Enters connections, and takes the lease if it is new. Returns the state of the lease, and if it is held: the
#: generation; for each connection whose member has come with this call, its index and since when it is there.
#: ARGV: the lease, the generation in which it is held, its length, the call; room, member, connection, data and grace
#: of each connection.
ENTER = Script(
    _ROSTER
    + """
local owner, length, call = ARGV[1], ARGV[3], ARGV[4]
local owned = key('owned:', owner)
local lease = state(owner, ARGV[2])
if lease == 'new' then
    redis.call('ZADD', owners, now + length, owner)
    redis.call('ZADD', owned, 'inf', '')
elseif lease ~= 'held' then
    return {lease}
end
redis.call('EXPIRE', KEYS[2], day)
redis.call('EXPIRE', owners, day)
redis.call('EXPIRE', owned, day)
local reply, is_kept = {'held', generation}, {}
for i = 0, (#ARGV - 4) / 5 - 1 do
    local room, member, connection, data, grace = unpack(ARGV, 5 * i + 5, 5 * i + 9)
    local members = key('members:', room)
    local is_added = redis.call('ZADD', owned, grace, join(room, member, connection)) == 1
    local since, count, entered_by = find(members, member)
    if not since then
        if not is_added then
            return forget()
        end
        since, count, entered_by = string.format('%.0f', microseconds + i), 0, call
    elseif is_added and count == '0' then
        redis.call('ZREM', key('leaving:', room), member)
    end
    if is_added then
        count = count + 1
    end
    put(members, member, since, count, entered_by, data)
    if not is_kept[room] then
        redis.call('EXPIRE', members, day)
        is_kept[room] = true
    end
    if entered_by == call then
        reply[#reply + 1] = i
        reply[#reply + 1] = since
    end
end
return reply
"""
)

#: Removes connections. ARGV: the lease, the generation in which it is held; room, member, connection of each.
LEAVE = Script(
    _ROSTER
    + """
local owned = key('owned:', ARGV[1])
if state(ARGV[1], ARGV[2]) ~= 'held' then
    return
end
for i = 3, #ARGV, 3 do
    local room, member = ARGV[i], ARGV[i + 1]
    local connection = join(room, member, ARGV[i + 2])
    local grace = redis.call('ZSCORE', owned, connection)
    if grace then
        redis.call('ZREM', owned, connection)
        if not leave(room, member, now + grace) then
            return forget()
        end
    end
end
"""
)

#: Prolongs a lease, and returns its state. With a cursor, it also prolongs the life of the rooms of some connections,
#: looks whether they are complete, and returns the next cursor.
#: ARGV: the lease, the generation in which it is held, its length, the cursor or nothing, how many connections.
RENEW = Script(
    _ROSTER
    + """
local owner, length, cursor, most = ARGV[1], ARGV[3], ARGV[4], ARGV[5]
local owned = key('owned:', owner)
local lease = state(owner, ARGV[2])
if lease ~= 'held' or cursor == '' then
    return {lease}
end
redis.call('ZADD', owners, now + length, owner)
redis.call('EXPIRE', KEYS[2], day)
redis.call('EXPIRE', owners, day)
redis.call('EXPIRE', owned, day)
local found, is_kept = redis.call('ZSCAN', owned, cursor, 'COUNT', most), {}
for i = 1, #found[2], 2 do
    if found[2][i] ~= '' then
        local room, member = split(found[2][i])
        local members = key('members:', room)
        if redis.call('HEXISTS', members, member) == 0 then
            return forget()
        end
        if not is_kept[room] then
            redis.call('EXPIRE', members, day)
            is_kept[room] = true
        end
    end
end
return {lease, found[1]}
"""
)

#: Ends a lease. ARGV: the lease, the generation in which it is held.
CLOSE = Script(
    _ROSTER
    + """
if state(ARGV[1], ARGV[2]) == 'held' then
    bury(ARGV[1], now)
end
"""
)

#: Lets connections of dead processes leave, and removes members whose grace is over. Returns how many connections, then
#: room, member, since and data of each member.
#: ARGV: two times of silence, how many, how long a lease is overdue at its end, its length, the process, the call.
SWEEP = Script(
    _ROSTER
    + """
local most, overdue, length, call = tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[7]
local swept = key('swept:', ARGV[6])
local last, reply = redis.call('GET', swept), nil
if last then
    last, reply = cmsgpack.unpack(last)
    if last == call then
        return reply
    end
end
if was_silent(ARGV[1], ARGV[2]) then
    for _, owner in ipairs(redis.call('ZRANGE', owners, 0, -1)) do
        redis.call('ZADD', owners, 'GT', now + length, owner)
    end
end
redis.call('SET', heard, string.format('%.0f', now), 'EX', day)
reply = {(reap(most, overdue))}
local left = most
for _, room in ipairs(redis.call('ZRANGEBYSCORE', leaving, '-inf', now, 'LIMIT', 0, most)) do
    local members, leaving_room = key('members:', room), key('leaving:', room)
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', leaving_room, '-inf', now, 'LIMIT', 0, left)) do
        local since, count, _, data = find(members, member)
        redis.call('ZREM', leaving_room, member)
        if count == '0' then
            redis.call('HDEL', members, member)
            for _, value in ipairs({room, member, since, data}) do
                reply[#reply + 1] = value
            end
            left = left - 1
        end
    end
    local first = redis.call('ZRANGE', leaving_room, 0, 0, 'WITHSCORES')
    if first[1] then
        redis.call('ZADD', leaving, first[2], room)
    else
        redis.call('ZREM', leaving, room)
    end
    if left == 0 then
        break
    end
end
if #reply > 1 or reply[1] > 0 then
    redis.call('SET', swept, cmsgpack.pack(call, reply), 'EX', 300)
end
return reply
"""
)

_LOOK = (
    _ROSTER
    + """
local members, leaving_room = key('members:', ARGV[5]), key('leaving:', ARGV[5])
local reaped = 0
if not was_silent(ARGV[1], ARGV[2]) then
    local is_more
    reaped, is_more = reap(tonumber(ARGV[3]), ARGV[4])
    if is_more then
        return {reaped}
    end
end
"""
)

#: Returns how many connections of dead processes have left, and unless more have to leave: the members with their
#: values, and the members whose grace is over.
#: ARGV: two times of silence, how many connections may leave, how long a lease is overdue at its end, the room.
MEMBERS = Script(
    _LOOK + "return {reaped, redis.call('HGETALL', members), redis.call('ZRANGEBYSCORE', leaving_room, '-inf', now)}"
)

#: As the script before, with the number of the members whose grace is not over.
COUNT = Script(_LOOK + "return {reaped, redis.call('HLEN', members) - redis.call('ZCOUNT', leaving_room, '-inf', now)}")
