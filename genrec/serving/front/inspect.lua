-- Looks into requests before they reach Triton. Loaded by HAProxy (Lua 5.3 or 5.4); see `genrec/serving/front`.
--
-- What cannot be looked into is refused. Readers give `nil, why` where a request is refused.

local byte, find, sub, unpack = string.byte, string.find, string.sub, string.unpack

local WORD = "classification"
local CLASSIFIED = "the classification extension is closed here: it would end the server; leave the parameter '" .. WORD .. "' out"
local MOST_FIELDS = 10000 -- of a protobuf message: each is a step of the reader
local MOST_VALUES = 100000 -- of JSON, likewise
local DEEPEST = 32 -- of JSON: Triton's own reader overflows its stack
local MOST_ELEMENTS = 1 << 20 -- of a tensor: Triton makes room for what a shape says, and ends where there is none
local LONGEST_SKIP = 10 -- bytes of a protobuf integer

-- Protobuf ------------------------------------------------------------------------------------------------------------

-- An integer of at most 32 bits, and where the next byte is.
local function small(text, at, last)
    local value, shift = 0, 0
    for place = at, at + 4 do
        if place > last then
            return nil
        end
        local part = byte(text, place)
        value = value | (part & 0x7f) << shift
        if part < 0x80 then
            if value > 0xffffffff then
                return nil
            end
            return value, place + 1
        end
        shift = shift + 7
    end
    return nil
end

-- What protobuf reads of a message, by the numbers of its fields: "text" is UTF-8, "bytes" is anything; 1, 4 and 8 are
-- packed numbers, of any length or of so many bytes; a table is a message. Other fields are passed over.
--
-- All of it has to be right: of a message that protobuf refuses, gRPC ends the connection that it came by, and HAProxy has
-- one for the requests of many clients.
local PARAMETER = { [1] = "text", [2] = { [3] = "text" } } -- an entry of a map
local CONTENTS = { [1] = 1, [2] = 1, [3] = 1, [4] = 1, [5] = 1, [6] = 4, [7] = 8, [8] = "bytes" }
local INPUT = { [1] = "text", [2] = "text", [3] = 1, [4] = PARAMETER, [5] = CONTENTS }
local OUTPUT = { [1] = "text", [2] = PARAMETER }
local REQUEST = { [1] = "text", [2] = "text", [3] = "text", [4] = PARAMETER, [5] = INPUT, [6] = OUTPUT, [7] = "bytes" }
local QUESTION = { [1] = "text", [2] = "text" } -- whether a model is ready, and the like

local UNREADABLE = "the message cannot be read"
local NO_TEXT = UNREADABLE .. ": a name or another text is not UTF-8"

-- Where the next byte is behind an integer that is passed over.
local function skipped(text, at, last)
    local _, stop = find(text, "^[\x80-\xff]*[\x00-\x7f]", at)
    if not stop or stop > last or stop - at >= LONGEST_SKIP then
        return nil
    end
    return stop + 1
end

-- Whether the bytes from first to last are packed numbers.
local function are_numbers(text, first, last, size)
    if size > 1 then
        return (last - first + 1) % size == 0
    end
    while first and first <= last do
        first = skipped(text, first, last)
    end
    return first
end

-- Reads the message from `at` to `last`; gives true, or nil and why it is refused. form: its fields. budget.left: fields
-- that may still come. visit(form, field, first, last): called with each field of it, and of the messages in it, whose
-- value is bytes, before what is in that; gives true, or nil and why.
local function each_bytes(text, at, last, form, budget, visit)
    while at <= last do
        local tag, from = small(text, at, last)
        budget.left = budget.left - 1
        if not tag or tag < 8 then
            return nil, UNREADABLE
        elseif budget.left < 0 then
            return nil, "the message has more than " .. MOST_FIELDS .. " fields"
        end
        local kind = tag & 7
        if kind == 2 then
            local size, first = small(text, from, last)
            if not size or first + size - 1 > last then
                return nil, UNREADABLE
            end
            at = first + size
            local field = tag >> 3
            local done, why = visit(form, field, first, at - 1)
            if not done then
                return nil, why
            end
            local of = form[field]
            if of == "text" then
                local value = sub(text, first, at - 1)
                -- Lua 5.3 takes halves of pairs of UTF-16.
                if not utf8.len(value) or find(value, "\xed[\xa0-\xbf]") then
                    return nil, NO_TEXT
                end
            elseif type(of) == "table" then
                done, why = each_bytes(text, first, at - 1, of, budget, visit)
                if not done then
                    return nil, why
                end
            elseif type(of) == "number" and not are_numbers(text, first, at - 1, of) then
                return nil, UNREADABLE
            end
        elseif kind == 0 then
            at = skipped(text, from, last)
            if not at then
                return nil, UNREADABLE
            end
        elseif kind == 1 then
            at = from + 8
        elseif kind == 5 then
            at = from + 4
        else
            return nil, UNREADABLE
        end
    end
    if at ~= last + 1 then
        return nil, UNREADABLE
    end
    return true
end

-- Whether bytes from `at` to `last` are elements of a BYTES tensor, each behind its length. Triton sees one that is not
-- whole when it has put requests of many clients together, and then refuses all of these.
local function whole_elements(text, at, last)
    while at + 3 <= last do
        at = at + 4 + unpack("<I4", text, at)
    end
    return at == last + 1
end

local function broken_elements(number)
    return "the data of input " .. number .. " break off: each element of BYTES is its length, 4 bytes little-endian, and its bytes"
end

-- A ModelInferRequest from first to last. model: the only one that may be asked.
local function infer_request(text, first, last, model)
    local named, types, raw = false, {}, {}
    local budget = { left = MOST_FIELDS }
    local done, why = each_bytes(text, first, last, REQUEST, budget, function(form, field, from, to)
        if form == REQUEST then
            if field == 1 then -- model_name
                if sub(text, from, to) ~= model then
                    return nil, "this call reaches the model '" .. model .. "' only"
                end
                named = true
            elseif field == 5 then -- inputs
                types[#types + 1] = ""
            elseif field == 7 then -- raw_input_contents
                raw[#raw + 1] = { from, to }
            end
        elseif form == INPUT then
            if field == 2 then -- datatype; the last one counts
                types[#types] = sub(text, from, to)
            end
        elseif form == PARAMETER then
            -- A key may stand there more than once, and protobuf takes the last.
            if field == 1 and to - from + 1 == #WORD and sub(text, from, to) == WORD then
                return nil, CLASSIFIED
            end
        end
        return true
    end)
    if not done then
        return nil, why
    elseif not named then
        return nil, "this call reaches the model '" .. model .. "' only"
    end
    for number, place in ipairs(raw) do
        if types[number] == "BYTES" and not whole_elements(text, place[1], place[2]) then
            return nil, broken_elements(number)
        end
    end
    return true
end

-- The size of the gRPC message that begins at `at`, of which five bytes are there.
local function message_size(text, at, most)
    local compressed, size = unpack(">BI4", text, at)
    if compressed ~= 0 then
        return nil, "compressed messages are closed here: they cannot be looked into"
    elseif size > most then
        return nil, "the message has " .. size .. " bytes; at most " .. most .. " are accepted"
    end
    return size
end

-- The body of a unary call: one message. model: nil if any will do.
local function unary_call(body, most, model)
    if #body < 5 then
        return nil, "the message is not whole"
    end
    local size, why = message_size(body, 1, most)
    if not size then
        return nil, why
    elseif #body ~= size + 5 then
        return nil, #body < size + 5 and "the message is not whole" or "one call takes one message"
    elseif model then
        return infer_request(body, 6, #body, model)
    end
    return each_bytes(body, 6, #body, QUESTION, { left = MOST_FIELDS }, function() return true end)
end

-- JSON ----------------------------------------------------------------------------------------------------------------

local json_value

local NOTED = { ["/inputs[]/datatype"] = "type", ["/inputs[]/parameters/binary_data_size"] = "size" }

-- Where the text behind a string is that begins at `at` with a quote, and whether it has escapes.
local function json_string(text, at)
    local escaped = false
    at = at + 1
    while true do
        local _, last = find(text, '^[^"\\\x00-\x1f]*', at)
        at = last + 1
        local sign = byte(text, at)
        if sign == 34 then -- "
            return at + 1, escaped
        elseif sign ~= 92 then -- \
            return nil
        end
        escaped = true
        if find(text, '^["\\/bfnrt]', at + 1) then
            at = at + 2
        else
            local code = text:match("^u(%x%x%x%x)", at + 1)
            if not code then
                return nil
            end
            local value = tonumber(code, 16)
            at = at + 6
            if value >= 0xd800 and value <= 0xdfff then
                if value > 0xdbff or not find(text, "^\\u[dD][c-fC-F]%x%x", at) then
                    return nil
                end
                at = at + 6
            end
        end
    end
end

local function blanks(text, at)
    local _, last = find(text, "^[ \t\r\n]*", at)
    return last + 1
end

local function json_number(text, at, in_data)
    local _, last = find(text, "^-?%d+", at)
    if not last or find(text, "^-?0%d", at) then
        return nil
    end
    local whole = true
    local _, stop = find(text, "^%.%d+", last + 1)
    if stop then
        last, whole = stop, false
    end
    _, stop = find(text, "^[eE][+-]?%d+", last + 1)
    if stop then
        last, whole = stop, false
    end
    local value = tonumber(sub(text, at, last))
    if value == math.huge or value == -math.huge then
        return nil
    elseif in_data and whole and (value > 2147483647 or value < -2147483648) then
        return nil, "a number in 'data' has more than 32 bits"
    end
    return last + 1
end

-- Whether the value from first to last, a shape if it is right, has no more elements than there may be.
local function fits(text, first, last)
    local elements = 1.0
    for size in sub(text, first, last):gmatch("%d+") do
        elements = elements * tonumber(size)
    end
    return elements <= MOST_ELEMENTS
end

-- Where the text behind a value is that begins at `at`, or nil and what is wrong with it.
-- budget.left: values that may still come. budget.inputs: the datatype and the size of binary data of each input.
function json_value(text, at, depth, in_data, budget, place)
    local sign = byte(text, at)
    budget.left = budget.left - 1
    if budget.left < 0 then
        return nil, "it has more than " .. MOST_VALUES .. " values"
    end
    if sign == 34 then
        return (json_string(text, at))
    elseif sign == 91 or sign == 123 then -- [ {
        if depth >= DEEPEST then
            return nil, "it is nested more than " .. DEEPEST .. " deep"
        end
        local closing, is_object = sign + 2, sign == 123
        at = blanks(text, at + 1)
        if byte(text, at) == closing then
            return at + 1
        end
        while true do
            local data, shape, within = in_data, false, place .. "[]"
            if is_object then
                if byte(text, at) ~= 34 then
                    return nil
                end
                local stop, escaped = json_string(text, at)
                if not stop then
                    return nil
                end
                local key = sub(text, at + 1, stop - 2)
                if escaped then
                    return nil, "a name has escapes"
                elseif key == WORD then
                    return nil, CLASSIFIED
                end
                data, shape = in_data or key == "data", key == "shape"
                within = place .. "/" .. key
                at = blanks(text, stop)
                if byte(text, at) ~= 58 then -- :
                    return nil
                end
                at = blanks(text, at + 1)
            end
            if within == "/inputs[]" then
                budget.inputs[#budget.inputs + 1] = {}
            end
            local stop, why = json_value(text, at, depth + 1, data, budget, within)
            local noted = NOTED[within]
            if not stop then
                return nil, why
            elseif noted then
                local input = budget.inputs[#budget.inputs]
                if input[noted] then -- readers do not agree which one counts
                    return nil, "a name stands there twice"
                end
                input[noted] = sub(text, at, stop - 1)
            elseif shape and not fits(text, at, stop - 1) then
                return nil, "a shape has more than " .. MOST_ELEMENTS .. " elements"
            end
            at = blanks(text, stop)
            sign = byte(text, at)
            if sign == closing then
                return at + 1
            elseif sign ~= 44 then -- ,
                return nil
            end
            at = blanks(text, at + 1)
        end
    end
    for _, word in ipairs({ "true", "false", "null" }) do
        if sub(text, at, at + #word - 1) == word then
            return at + #word
        end
    end
    return json_number(text, at, in_data)
end

-- A request over HTTP: a JSON object, of which `header` says where it ends if binary data follow.
local function json_request(body, header)
    local text = body
    if header then
        local size = find(header, "^%d+$") and #header < 10 and tonumber(header)
        if not size or size > #body then
            return nil, "Inference-Header-Content-Length is not the size of the body's JSON"
        end
        text = sub(body, 1, size)
    end
    local at = blanks(text, 1)
    if byte(text, at) ~= 123 then
        return nil, "the body is not a JSON object"
    end
    local budget = { left = MOST_VALUES, inputs = {} }
    local stop, why = json_value(text, at, 0, false, budget, "")
    if not stop or blanks(text, stop) ~= #text + 1 then
        return nil, why == CLASSIFIED and why or "the body's JSON cannot be read" .. (why and ": " .. why or "")
    end
    at = #text + 1 -- of the data of the next input
    for number, input in ipairs(budget.inputs) do
        if input.size then
            local size = find(input.size, "^%d+$") and #input.size < 10 and tonumber(input.size)
            if not size or at + size - 1 > #body then
                return nil, "binary_data_size of input " .. number .. " is not the size of data that are there"
            elseif find(input.type or "", "\\", 1, true) then
                return nil, "the datatype of input " .. number .. " has escapes"
            elseif input.type == '"BYTES"' and not whole_elements(body, at, at + size - 1) then
                return nil, broken_elements(number)
            end
            at = at + size
        end
    end
    return true
end

-- HAProxy -------------------------------------------------------------------------------------------------------------

local INVALID, UNIMPLEMENTED = "3", "12"

-- A call whose body is there as a whole, or fills the buffer. The reason to refuse it goes into txn.why, and the status
-- into txn.status; a body that is too large sets txn.large. model: "-" if any will do.
core.register_action("genrec_call", { "http-req" }, function(txn, most, model)
    local body = txn.f:req_body()
    local size = #body >= 5 and unpack(">I4", body, 2) or 0
    if #body > tonumber(most) + 5 or size > tonumber(most) then
        txn:set_var("txn.large", true)
        return
    end
    local done, why = unary_call(body, tonumber(most), model ~= "-" and model or nil)
    if not done then
        txn:set_var("txn.status", find(why, "compressed", 1, true) == 1 and UNIMPLEMENTED or INVALID)
        txn:set_var("txn.why", why)
    end
end, 2)

core.register_action("genrec_json", { "http-req" }, function(txn)
    local done, why = json_request(txn.f:req_body(), txn.f:req_fhdr("inference-header-content-length"))
    if not done then
        txn:set_var("txn.why", why)
    end
end)

-- The message of a stream is passed on when it was looked into. In place of one that is refused Triton gets one with an
-- input that it does not know, named by the reason: it answers that with INVALID_ARGUMENT and this name. (A filter cannot
-- answer; one that returns an error has HAProxy pass the data on.) A second message ends the stream: Triton 2.51 ends
-- itself if it refuses one while the text of another is written.
local Stream = { id = "genrec_stream", flags = filter.FLT_CFG_FL_HTX }

function Stream:new() -- of the class at the start, then of what was made of it, for each stream
    return setmetatable({}, { __index = self })
end

function Stream:start_analyze(txn, channel)
    if not channel:is_resp() then
        filter.register_data_filter(self, channel)
    end
end

local function field(number, text) -- of less than 128 bytes
    return string.char(number << 3 | 2, #text) .. text
end

-- Puts a message that Triton refuses, with `why` in what it says, in the place of `size` bytes at `at`; gives its size.
function Stream:refuse(message, at, size, why)
    local text = field(1, self.model) .. field(5, field(1, sub(why, 1, 110)) .. field(2, "BYTES"))
    text = string.pack(">BI4", 0, #text) .. text
    message:remove(at, size)
    if message:insert(text, at) ~= #text then
        error("no room for a refusal") -- then the stream ends, and nothing is passed on
    end
    return #text
end

-- Gives how many bytes may be passed on.
function Stream:http_payload(txn, message)
    local passed = 0
    while not self.lost do
        local head = message:body(passed, 5)
        if not head or #head < 5 then
            break
        end
        if self.begun then
            error("a stream is one text") -- then the stream ends, and nothing is passed on
        end
        self.begun = true
        local size, why = message_size(head, 1, self.most)
        if not size then
            -- Where the next message begins is not known, or far away. The refusal lacks its last byte until the
            -- client has said all: HAProxy 2.6 loses answers that come before.
            self.lost = true
            passed = passed + self:refuse(message, passed, #message:body(passed, -1), why) - 1
            self.held = 1
            break
        end
        local text = message:body(passed, size + 5)
        if #text < size + 5 then
            break
        end
        local done
        done, why = infer_request(text, 6, #text, self.model)
        passed = passed + (done and #text or self:refuse(message, passed, #text, why))
    end
    local held = self.held or 0
    local left = #(message:body(passed + held, -1) or "")
    if left > 0 and (self.lost or message:eom()) then -- the rest of what is too large, or half a message
        message:remove(passed + held, left)
        left = 0
    end
    if message:eom() then
        return message:input() -- the mark of the end counts too
    end
    return message:input() - left - held
end

core.register_filter("genrec_stream", Stream, function(stream, args)
    stream.most, stream.model = tonumber(args[1]), args[2]
    return stream
end)
