"""A provider that misbehaves on purpose and counts its effects.

It stands in for real providers in development, demonstrations and tests. It answers as Stripe and SendGrid do for the
calls the shipped tool contracts make, adds two plain resources of its own (tickets, echo), and breaks the connection, the
answer or the commit when told to. What it counts as an effect is committed before the first byte of any answer, so the
list of effects is the truth against which everything else is compared.

| file | what flows through it |
|---|---|
| `exchange.py` | the values: what was received, what is answered, what an effect is |
| `form.py`, `json_body.py` | bytes of a body to fields |
| `stripe.py`, `sendgrid.py`, `tickets.py`, `echo.py` | one provider each: what it accepts, what it makes, what it lists |
| `strategies.py` | labels, records, messages and scheduled mails: each is recovered by another strategy |
| `faults.py` | the faults that can be planned and the queue of them |
| `records.py` | all SQL: effects, stored answers, received requests |
| `server.py` | the path of one request, and the server itself |
| `control.py` | `/_control`: what tests read and plan |
| `__main__.py` | the process |
"""
