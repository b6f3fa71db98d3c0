# Two hosts. Neither keeps anything that is not in S3 or in Postgres, so a host is never changed: another package or setting is
# another host.

# Canonical says which image is the newest.
data "aws_ssm_parameter" "ubuntu" {
  count = var.ami_id == null ? 1 : 0

  name = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
}

locals {
  ami_id = var.ami_id == null ? nonsensitive(data.aws_ssm_parameter.ubuntu[0].value) : var.ami_id

  security_groups = {
    importer    = aws_security_group.importer.id
    transformer = aws_security_group.transformer.id
  }

  # The unit gives STREAM, and the database's address is a credential of it, not a setting.
  settings_file = {
    for daemon, environment in local.environment :
    daemon => { for name, value in environment : name => value if !contains(["STREAM", "DATABASE_URL"], name) }
  }
}

resource "aws_instance" "host" {
  for_each = local.environment

  ami                         = local.ami_id
  instance_type               = var.instance_type
  subnet_id                   = aws_subnet.public.id
  associate_public_ip_address = true
  vpc_security_group_ids      = [local.security_groups[each.key]]
  iam_instance_profile        = aws_iam_instance_profile.host[each.key].name

  user_data = templatefile("${path.module}/user-data.sh.tftpl", {
    daemon               = each.key
    stream               = var.stream
    settings             = local.settings_file[each.key]
    database_url         = lookup(each.value, "DATABASE_URL", "")
    database_authorities = local.database_authorities
    region               = var.region
    bucket               = aws_s3_bucket.archive.bucket
    package_key          = var.package_key
    package_sha256       = var.package_sha256
  })
  user_data_replace_on_change = true

  # Nothing but the host itself gets its role's keys: tokens, and one hop.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  # The importer spools one answer, all its pages together, of at most 1 GiB by default.
  root_block_device {
    volume_size = 8
    volume_type = "gp3"
    encrypted   = true
  }

  tags = { Name = "${var.name}-${var.stream}-${each.key}" }

  lifecycle {
    # A newer image is for the next host, not a reason for one.
    ignore_changes = [ami]
  }

  # The first thing that a host does is to use its role and the internet.
  depends_on = [aws_iam_role_policy.host, aws_route.internet, aws_vpc_security_group_egress_rule.out]
}
