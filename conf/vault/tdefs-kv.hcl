# For the key source kind vault-kv: the path "tdefs/pg1" of the KV engine, version 2, mounted at "kv".
# "create" is needed for the first use only. Without "update" and "delete" the host cannot lose the key.
path "kv/data/tdefs/pg1" {
  capabilities = ["create", "read"]
}
