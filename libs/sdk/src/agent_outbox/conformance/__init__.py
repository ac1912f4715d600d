"""The conformance kit: hostile scenarios against any gateway that offers the API of Agent Outbox (`outbox conformance`).

It speaks plain HTTP to the gateway and to the sandbox provider, and believes neither the gateway's words nor its silence: what
happened is what the provider has counted.
"""
