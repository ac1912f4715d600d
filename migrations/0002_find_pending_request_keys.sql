-- Each API process renews the request keys it is answering every three seconds; without an index it read all keys of the day to find them.

create index request_keys_pending on request_keys (holder) where pending_until is not null;
