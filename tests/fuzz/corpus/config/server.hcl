server {
    bind_port = "8081" # comment
    trust_domain = "spiffe://example.org/x"
    ca_ttl = "1h30m"
    admin_ids = ["spiffe://example.org/a", "b",]
    log_level = "DEBUG"
    ca_key_type = "ec-p256"
    unknown = <<-X
      text
      X
}
plugins {
    KeyManager "memory" { plugin_data = {} }
    KeyManager "disk" { enabled = false }
    KeyManager "own" { plugin_cmd = "/bin/x" }
}
