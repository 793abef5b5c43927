-- What wrk sends, when, and one line "due ms status Server-Timing" for each answer (see load.py).
-- wrk tells no time of a single request: each thread has one connection and reads the clock itself.
local ffi = require("ffi")
ffi.cdef("typedef struct { long s, ns; } moment; int clock_gettime(int, moment *);")
local moment, threads = ffi.new("moment"), 0

local function now() -- as Python's time.monotonic()
    ffi.C.clock_gettime(1, moment)
    return tonumber(moment.s) + tonumber(moment.ns) / 1e9
end

function setup(thread)
    thread:set("number", threads) -- of the thread's next request
    threads = threads + 1
end

function init(args)
    folder, templates, first, clients, rate, began, ended = args[1], unpack(args, 3)
    seen = io.open(args[2], "a")
    seen:setvbuf("line") -- all threads append to one file
    due, refused = began + number / rate, false
end

function delay() -- milliseconds until the next request
    if rate + 0 == 0 then due = math.max(began, now()) + (refused and 0.1 or 0) end
    return due < ended + 0 and math.max(0, math.ceil(1000 * (due - now()))) or 1e9
end

function request()
    local file = io.open(("%s/%04d"):format(folder, number % templates), "rb")
    local text = file:read("*a")
    file:close()
    local from, to = text:find("NNNNNNNNN", 1, true)
    if from then
      text = text:sub(1, from - 1) .. ("%09d"):format(first + number) .. text:sub(to + 1)
    end
    if rate + 0 == 0 then due = now() end
    return text
end

function response(status, headers)
    local timing = headers["server-timing"] or headers["Server-Timing"] or ""
    seen:write(("%.6f %.3f %d %s\n"):format(due - began, 1000 * (now() - due), status, timing))
    refused, number = status ~= 200, number + clients
    due = began + number / rate
end

function done(summary)
    local errors = summary.errors
    print(errors.connect + errors.read + errors.write + errors.timeout)
end
