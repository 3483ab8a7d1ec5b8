-- Adds a revocation unless too many are in force. Also trims those that are over. It needs no permission that would allow
-- deleting a log.
--
-- KEYS  1 revocations
-- ARGV  1 how long they are kept, ms   2 the most that are kept   3 'user' or 'jti'   4 the user's or the token's id
--       5 actor
-- Returns the entry's id, or nil if the limit is reached.
local revoked = KEYS[1]
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local oldest = now - tonumber(ARGV[1])
local first = redis.call('XRANGE', revoked, '-', '+', 'COUNT', 1)[1]
local in_force = first and tonumber(string.match(first[1], '^(%d+)')) >= oldest
if in_force and redis.call('XLEN', revoked) >= tonumber(ARGV[2]) then return false end
return redis.call('XADD', revoked, 'MINID', string.format('%.0f', oldest), '*', ARGV[3], ARGV[4], 'actor', ARGV[5])
