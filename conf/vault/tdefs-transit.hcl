# For the key source kind vault-transit: the key "pg1" of the transit engine mounted at "transit".
# Not "create" on encrypt: with it, a mistyped name would make a new key.
path "transit/encrypt/pg1" {
  capabilities = ["update"]
}
path "transit/decrypt/pg1" {
  capabilities = ["update"]
}
path "transit/keys/pg1" {
  capabilities = ["read"]
}
