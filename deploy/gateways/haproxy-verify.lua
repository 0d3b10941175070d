-- Asks the sign-in service, and keeps its answer in variables of the transaction.
core.register_action("verify", { "http-req" }, function(txn)
    local answer = core.httpclient():get {
        url = txn:get_var("txn.verify"),
        headers = { authorization = txn.http:req_get_headers()["authorization"] and
            { txn.http:req_get_headers()["authorization"][0] } },
        timeout = 2000,
    }
    txn:set_var("txn.status", answer and answer.status or 503)
    for _, name in ipairs { "email", "role", "session", "expires", "reason" } do
        local values = answer and answer.headers and answer.headers["x-auth-" .. name]
        txn:set_var("txn." .. name, values and values[0] or "")
    end
end)
