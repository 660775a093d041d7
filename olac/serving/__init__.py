"""Serving programs over HTTP: `olac serve` for many programs and clients, and `RemoteServer` for the client's side.

`names` are what may become paths, `programs` what is published, `store` keys and jobs on disk, `tokens` who asks,
`quotas` how much, `uploads` bodies on their way to disk, `worker` a process for one key set, `pool` all of them within
memory, `app` the routes, `page` what a browser shows, `metrics` and `logs` what operators read, `service` all together,
`remote` the client. Only `app`, `metrics`, `service` and `remote` need the extra `olac[serve]`.
"""
