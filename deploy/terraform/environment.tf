# What the daemons are told, for each stream. The hosts' settings and the outputs are both made of this.

locals {
  # Amazon's authorities, which user data fetches.
  database_authorities = "/etc/ssl/certs/rds-global-bundle.pem"

  # No password in it: the transformer makes a token for each connection.
  database_url = "postgres://${var.database_role}@${aws_db_instance.main.endpoint}/${local.database_name}?sslmode=verify-full&sslrootcert=${local.database_authorities}"

  common_environment = {
    for stream, queue in aws_sqs_queue.bell : stream => {
      STREAM         = stream
      ARCHIVE_BUCKET = aws_s3_bucket.archive.bucket
      QUEUE_URL      = queue.url
      AWS_REGION     = var.region
    }
  }

  environment = {
    importer = {
      for name, stream in var.streams :
      name => merge(stream.importer_settings, local.common_environment[name], { SOURCE_URL = stream.source_url })
    }
    transformer = {
      for name, stream in var.streams :
      name => merge(
        { DATABASE_SCHEMA = replace(name, "-", "_") },
        stream.transformer_settings,
        local.common_environment[name],
        { DATABASE_URL = local.database_url, DATABASE_AUTH = "iam" },
      )
    }
  }

  # The files of each stream, by what their names end with. The unit gives STREAM, and the database's address is a credential of
  # it, not a setting. Quoted like this a value is the same to systemd and to a shell, whatever is in it.
  files = {
    for daemon, streams in local.environment : daemon => {
      for stream, environment in streams : stream => merge(
        {
          env = join("", [
            for name, value in environment : "${name}=\"${replace(value, "/[\\\\\"$`]/", "\\$0")}\"\n"
            if !contains(["STREAM", "DATABASE_URL"], name)
          ])
        },
        { for name, value in environment : "database-url" => "${value}\n" if name == "DATABASE_URL" },
      )
    }
  }
}

# Read by the hosts each minute, and not part of their user data, so that no stream replaces a host.
resource "aws_s3_object" "settings" {
  for_each = local.files

  bucket       = aws_s3_bucket.archive.id
  key          = "settings/${each.key}.json"
  content_type = "application/json"
  content      = jsonencode(each.value)
  # What somebody wrote there by hand is put right by the next apply.
  etag = md5(jsonencode(each.value))

  # A daemon that starts may do what it does.
  depends_on = [aws_iam_role_policy.host]
}
