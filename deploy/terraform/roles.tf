# What each host may do, and nothing else. A host is one role for the daemons of all streams: keys from the host's role are there
# for whoever is on the host. Each stream is named, so what belongs to none of them is refused.

data "aws_caller_identity" "me" {}

locals {
  prefixes        = [for stream in keys(var.streams) : "raw/${stream}/*"]
  archive_objects = [for prefix in local.prefixes : "${aws_s3_bucket.archive.arn}/${prefix}"]
  queues          = [for queue in aws_sqs_queue.bell : queue.arn]

  # Whether an object is missing (404) or hidden (403) S3 decides by s3:ListBucket with the object's key for the prefix
  # (<https://github.com/ceph/ceph/pull/68577>), so the condition covers that too.
  list_archive = {
    Sid       = "ListArchive"
    Effect    = "Allow"
    Action    = "s3:ListBucket"
    Resource  = aws_s3_bucket.archive.arn
    Condition = { StringLike = { "s3:prefix" = local.prefixes } }
  }

  read_package_and_settings = {
    for daemon in ["importer", "transformer"] : daemon => {
      Sid      = "ReadPackageAndSettings"
      Effect   = "Allow"
      Action   = "s3:GetObject"
      Resource = ["${aws_s3_bucket.archive.arn}/packages/*", "${aws_s3_bucket.archive.arn}/settings/${daemon}.json"]
    }
  }

  # A session with SSM, and no more: the managed policy AmazonSSMManagedInstanceCore would also let the hosts read each parameter
  # of the account. None of these can be held to one resource.
  be_reached_by_ssm = {
    Sid    = "BeReachedBySsm"
    Effect = "Allow"
    Action = [
      "ssm:UpdateInstanceInformation",
      "ssmmessages:CreateControlChannel",
      "ssmmessages:CreateDataChannel",
      "ssmmessages:OpenControlChannel",
      "ssmmessages:OpenDataChannel",
    ]
    Resource = "*"
  }

  permissions = {
    importer = [
      local.list_archive,
      {
        # S3 itself refuses a number that is taken: see the bucket's policy.
        Sid      = "ReadAndAppend"
        Effect   = "Allow"
        Action   = ["s3:GetObject", "s3:PutObject"]
        Resource = local.archive_objects
      },
      {
        Sid      = "Ring"
        Effect   = "Allow"
        Action   = "sqs:SendMessage"
        Resource = local.queues
      },
      local.read_package_and_settings.importer,
      local.be_reached_by_ssm,
    ]
    transformer = [
      local.list_archive,
      {
        Sid      = "Read"
        Effect   = "Allow"
        Action   = "s3:GetObject"
        Resource = local.archive_objects
      },
      {
        Sid      = "Hear"
        Effect   = "Allow"
        Action   = ["sqs:ReceiveMessage", "sqs:DeleteMessage"]
        Resource = local.queues
      },
      {
        Sid      = "ConnectAsTheRuntimeRole"
        Effect   = "Allow"
        Action   = "rds-db:connect"
        Resource = "arn:aws:rds-db:${var.region}:${data.aws_caller_identity.me.account_id}:dbuser:${aws_db_instance.main.resource_id}/${var.database_role}"
      },
      local.read_package_and_settings.transformer,
      local.be_reached_by_ssm,
    ]
  }
}

resource "aws_iam_role" "host" {
  for_each = local.permissions

  name        = "${var.name}-${each.key}"
  description = "The ${each.key}s of all streams"

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })
}

resource "aws_iam_role_policy" "host" {
  for_each = local.permissions

  name = "all-that-it-needs"
  role = aws_iam_role.host[each.key].id

  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = each.value
  })
}

resource "aws_iam_instance_profile" "host" {
  for_each = local.permissions

  name = aws_iam_role.host[each.key].name
  role = aws_iam_role.host[each.key].name
}
