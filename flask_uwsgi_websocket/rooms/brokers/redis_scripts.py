"""What Redis does in one step for messages and their history: scripts in Lua, and the keys that they use."""

from __future__ import annotations

from hashlib import sha1


class Script:
    """A script in Lua.

    :param text: its source.
    """

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        #: The name under which Redis knows the script once it was run.
        self.sha = sha1(self.text, usedforsecurity=False).hexdigest().encode()


# A server that starts again may have an old snapshot. Then it would count again from there. So an epoch begins with the
# name of the run, and each connection compares it before it does anything else: a connection does not outlive the run.
EPOCH = """
local function begin(key, run)
    local time = redis.call('TIME')
    local epoch = run .. '-' .. time[1] .. string.format('%06d', time[2])
    redis.call('SET', key, epoch)
    return epoch
end
local function run()
    return string.sub(string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or 'unknown', 1, 12)
end
"""

#: Begins an epoch if the server is not the run in which the last one began. KEYS: the epoch.
MEET = Script(
    EPOCH
    + """
local epoch, run = redis.call('GET', KEYS[1]), run()
if not epoch or string.sub(epoch, 1, #run) ~= run then
    begin(KEYS[1], run)
end
"""
)

_NOW = """
local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

# An entry of a history has its offset as its id, and six fields: epoch, offset before, time in ms, bytes of all
# messages up to it, how many entries up to it are kept, data. So the newest entry and the oldest one show what is
# beyond the limits. Redis frees some dozens of entries at once, which is fast. HISTORY leaves out the others.
# XADD fails when the stream had a larger id. Then Redis has forgotten the offset, and its clock was put back.
_KEEP = """
local function keep(key, epoch, previous, place, data, most, seconds, size)
    local total, count, time = #data, 1, now()
    local newest = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
    if newest then
        total, count = total + newest[2][8], count + newest[2][10]
    end
    local entry = {
        'MAXLEN', '~', most, place .. '-0',
        'e', epoch, 'p', previous, 't', string.format('%.0f', time), 'b', string.format('%.0f', total),
        'n', math.min(count, most), 'd', data,
    }
    if type(redis.pcall('XADD', key, unpack(entry))) == 'table' then
        redis.call('DEL', key)
        redis.call('XADD', key, unpack(entry))
    end
    local oldest = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
    while oldest and (total - oldest[2][8] + #oldest[2][12] > size + 0 or time - oldest[2][6] > seconds * 1000) do
        redis.call('XDEL', key, oldest[1])
        oldest = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
    end
    redis.call('EXPIRE', key, math.ceil(seconds))
end
"""

# A room that is not known begins at the time, so that its offset is above those that Redis has forgotten.
# The publisher's number is kept after each message: if the next one fails, this one is not published again.
#: Publishes messages. KEYS: the epoch, the publisher, the offsets, and the histories if a message is kept.
#: ARGV: how many messages; channel, number and data of each; if one is kept, the limits of each, empty if it is not.
PUBLISH = Script(
    EPOCH
    + _NOW
    + _KEEP
    + """
local counts = {}
local epoch = redis.call('GET', KEYS[1]) or begin(KEYS[1], run())
local last = tonumber(redis.call('GET', KEYS[2]) or -1)
local total = tonumber(ARGV[1])
for i = 1, total do
    local channel, number, data = ARGV[3 * i - 1], ARGV[3 * i], ARGV[3 * i + 1]
    if tonumber(number) <= last then
        counts[i] = -1
    else
        local offset = redis.call('INCR', KEYS[i + 2])
        local previous, place = string.format('%.0f', offset - 1), string.format('%.0f', offset)
        if offset == 1 then
            local time = redis.call('TIME')
            place = time[1] .. string.format('%06d', time[2])
            redis.call('SET', KEYS[i + 2], place, 'EX', 86400)
        else
            redis.call('EXPIRE', KEYS[i + 2], 86400)
        end
        local history, limits = KEYS[total + i + 2], 3 * (total + i)
        if history and ARGV[limits - 1] ~= '' then
            keep(history, epoch, previous, place, data, ARGV[limits - 1], ARGV[limits], ARGV[limits + 1])
        end
        counts[i] = redis.call('PUBLISH', channel, epoch .. ':' .. previous .. ':' .. place .. ':' .. data)
        redis.call('SET', KEYS[2], number, 'EX', 300)
        last = tonumber(number)
    end
end
return counts
"""
)

#: Returns epoch and offset of a room, and of each message after a position: offset, offset before, data.
#: KEYS: the epoch, the offset, the history. ARGV: epoch and offset of the position, the limits.
HISTORY = Script(
    _NOW
    + """
local position = redis.call('MGET', KEYS[1], KEYS[2])
local epoch, offset = position[1], position[2]
if not epoch or not offset then
    return {}
elseif epoch ~= ARGV[1] then
    return position
end
local entries = redis.call('XRANGE', KEYS[3], '(' .. ARGV[2] .. '-0', offset .. '-0')
if #entries == 0 then
    return position
end
local newest = entries[#entries][2]
local total, most = newest[8], math.min(newest[10], ARGV[3])
local oldest, size = now() - ARGV[4] * 1000, tonumber(ARGV[5])
for i, entry in ipairs(entries) do
    local fields, last = entry[2], #position
    local is_kept = #entries - i < most and total - fields[8] + #fields[12] <= size and tonumber(fields[6]) >= oldest
    if fields[2] == epoch and is_kept then
        position[last + 1] = string.match(entry[1], '^%d+')
        position[last + 2] = fields[4]
        position[last + 3] = fields[12]
    end
end
return position
"""
)
