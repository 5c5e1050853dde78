# For the key source kind vault-kv: the path "tdefs/pg1" of the KV engine, version 2, mounted at "kv".
# "create" is for the first use alone. Neither "update" nor "delete": nothing that the host does can lose the key.
path "kv/data/tdefs/pg1" {
  capabilities = ["create", "read"]
}
