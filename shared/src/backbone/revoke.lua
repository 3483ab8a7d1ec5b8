-- One revocation, unless too many are kept.
--
-- KEYS  1 revocations
-- ARGV  1 how long they are kept, ms   2 how many   3 'user' or 'jti'   4 whose   5 actor
-- Answers the entry's id, or nil when it would be one too many.
local revoked = KEYS[1]
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('XTRIM', revoked, 'MINID', string.format('%.0f', now - tonumber(ARGV[1])))
if redis.call('XLEN', revoked) >= tonumber(ARGV[2]) then return false end
local id = redis.call('XADD', revoked, '*', ARGV[3], ARGV[4], 'actor', ARGV[5])
-- When the last one is over, so is the key.
redis.call('PEXPIRE', revoked, ARGV[1])
return id
