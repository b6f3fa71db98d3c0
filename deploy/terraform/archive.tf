# The bucket: the archive below raw/, the packages that the hosts install below packages/.

# The prefix of its name is chosen, the rest is random: bucket names are everybody's.
resource "aws_s3_bucket" "archive" {
  bucket_prefix = "${var.name}-"
  force_destroy = !var.deletion_protection
}

# What is deleted by hand can be brought back.
resource "aws_s3_bucket_versioning" "archive" {
  bucket = aws_s3_bucket.archive.id

  versioning_configuration {
    status = "Enabled"
  }
}

# S3's own keys, not KMS: a key of our own would be one more thing that can be lost with the archive.
resource "aws_s3_bucket_server_side_encryption_configuration" "archive" {
  bucket = aws_s3_bucket.archive.id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

resource "aws_s3_bucket_public_access_block" "archive" {
  bucket = aws_s3_bucket.archive.id

  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "archive" {
  bucket = aws_s3_bucket.archive.id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

# Current objects never expire: the table is a function of all of them.
resource "aws_s3_bucket_lifecycle_configuration" "archive" {
  bucket = aws_s3_bucket.archive.id

  rule {
    id     = "end-broken-uploads"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }
  }

  dynamic "rule" {
    for_each = var.archive_cold_after_days[*]

    content {
      id     = "move-old-objects-to-a-cheaper-class"
      status = "Enabled"

      filter {
        prefix = "raw/"
      }

      transition {
        days          = rule.value
        storage_class = var.archive_cold_class
      }
    }
  }

  dynamic "rule" {
    for_each = var.noncurrent_expire_after_days[*]

    content {
      id     = "forget-what-was-deleted-by-hand"
      status = "Enabled"

      filter {}

      noncurrent_version_expiration {
        noncurrent_days = rule.value
      }
    }
  }

  depends_on = [aws_s3_bucket_versioning.archive]
}

resource "aws_s3_bucket_policy" "archive" {
  bucket = aws_s3_bucket.archive.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      {
        Sid       = "OnlyTls"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:*"
        Resource  = [aws_s3_bucket.archive.arn, "${aws_s3_bucket.archive.arn}/*"]
        Condition = { Bool = { "aws:SecureTransport" = "false" } }
      },
      {
        # A PUT that does not ask S3 to refuse a taken number is refused itself, whoever sends it. An upload in parts begins
        # without that header and is refused too; the importer appends in one piece.
        Sid       = "AppendOnly"
        Effect    = "Deny"
        Principal = "*"
        Action    = "s3:PutObject"
        Resource  = "${aws_s3_bucket.archive.arn}/raw/*"
        Condition = { Null = { "s3:if-none-match" = "true" } }
      },
    ]
  })

  # Both change who may do what with the bucket, and S3 refuses two such changes at once.
  depends_on = [aws_s3_bucket_public_access_block.archive]
}
