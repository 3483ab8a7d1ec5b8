-- Appends one override atomically: log entry, state lines, audit entry, and the result for its idempotency key.
-- Prices are never decoded.
--
-- KEYS  1 log   2 state   3 audit   4 idempotency (only with a fingerprint)
-- ARGV  1 payload        2 expected seq or ''       3 fingerprint or ''    4 idempotency ttl, s
--       5 remembered epoch   6 remembered seq       7 log length           8 audit length
--       9 actor          10 reason                  11 request id
--       then per line: name, name as a JSON string, JSON text or '' to remove the line
--       then, if the override is traced, its traceparent
-- Returns {'ok' | 'replayed', epoch, seq, ts, audit entry id}, {'conflict', epoch, seq} or {'reused'}.
local log, state, audit, idempotency = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

if idempotency then
    local first = redis.call('GET', idempotency)
    if first then
        local fingerprint, epoch, seq, ts, entry = string.match(first, '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
        if fingerprint ~= ARGV[3] then return {'reused'} end
        -- This write makes a WAIT after it wait for the first append's writes as well.
        redis.call('SET', idempotency, first, 'KEEPTTL')
        return {'replayed', epoch, seq, ts, entry}
    end
end

-- The log's latest position, and the latest position that the publisher or the state remembers.
local epoch, seq = 0, 0
local top = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
if top then
    local e, s = string.match(top[1], '^(%d+)-(%d+)$')
    epoch, seq = tonumber(e), tonumber(s)
end
local known_epoch, known_seq = tonumber(ARGV[5]), tonumber(ARGV[6])
local stated = redis.call('HMGET', state, 'epoch', 'seq')
if stated[1] and stated[2] then
    known_epoch = math.max(known_epoch, tonumber(stated[1]))
    known_seq = math.max(known_seq, tonumber(stated[2]))
end

-- A log below the remembered position has lost history. It gets a new epoch, and a seq above every acknowledged one. The
-- gap is for updates of other publishers that clients may have seen, but that this publisher had not heard of.
local GAP = 1000
local time = redis.call('TIME')
if not top or known_epoch > epoch or known_seq > seq then
    epoch = math.max(tonumber(time[1]), epoch + 1, known_epoch + 1)
    seq = math.max(seq, known_seq)
    if seq > 0 then seq = seq + GAP end
end

if ARGV[2] ~= '' and tonumber(ARGV[2]) ~= seq then
    return {'conflict', string.format('%.0f', epoch), string.format('%.0f', seq)}
end

local epoch_text, seq_text = string.format('%.0f', epoch), string.format('%.0f', seq + 1)
local ts = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))

local fields = {}
for i = 12, #ARGV - 2, 3 do fields[#fields + 1] = 'l:' .. ARGV[i] end
local former = redis.call('HMGET', state, unpack(fields))
local before, set, removed = {}, {'epoch', epoch_text, 'seq', seq_text, 'ts', ts}, {}
for n, field in ipairs(fields) do
    local i = 9 + 3 * n
    if former[n] then before[#before + 1] = ARGV[i + 1] .. ':' .. former[n] end
    if ARGV[i + 2] == '' then
        removed[#removed + 1] = field
    else
        set[#set + 1] = field
        set[#set + 1] = ARGV[i + 2]
    end
end

local entry = redis.call('XADD', audit, 'MAXLEN', '~', ARGV[8], '*', 'epoch', epoch_text, 'seq', seq_text, 'ts', ts,
    'actor', ARGV[9], 'reason', ARGV[10], 'before', '{' .. table.concat(before, ',') .. '}', 'after', ARGV[1],
    'requestId', ARGV[11])
local update = {'ts', ts, 'p', ARGV[1], 'a', entry}
if #ARGV % 3 == 0 then
    update[7], update[8] = 't', ARGV[#ARGV]
end
redis.call('XADD', log, 'MAXLEN', '~', ARGV[7], epoch_text .. '-' .. seq_text, unpack(update))
redis.call('HSET', state, unpack(set))
if #removed > 0 then redis.call('HDEL', state, unpack(removed)) end
if idempotency then
    redis.call('SET', idempotency, table.concat({ARGV[3], epoch_text, seq_text, ts, entry}, ' '), 'EX', ARGV[4])
end
return {'ok', epoch_text, seq_text, ts, entry}
