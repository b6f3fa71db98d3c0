# What the daemons are told. The hosts' settings files and the outputs are both made of this.

locals {
  # Amazon's authorities, which user data fetches.
  database_authorities = "/etc/ssl/certs/rds-global-bundle.pem"

  # No password in it: the transformer makes a token for each connection.
  database_url = "postgres://${var.database_role}@${aws_db_instance.main.endpoint}/${local.database_name}?sslmode=verify-full&sslrootcert=${local.database_authorities}"

  common_environment = {
    STREAM         = var.stream
    ARCHIVE_BUCKET = aws_s3_bucket.archive.bucket
    QUEUE_URL      = aws_sqs_queue.bell.url
    AWS_REGION     = var.region
  }

  environment = {
    importer    = merge(var.importer_settings, local.common_environment, { SOURCE_URL = var.source_url })
    transformer = merge(var.transformer_settings, local.common_environment, { DATABASE_URL = local.database_url, DATABASE_AUTH = "iam" })
  }
}
